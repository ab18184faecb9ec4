import os
import shutil
import subprocess

import jax
import pytest

from mim_jax.train import keep_compilations
from tests.processes import command
from tests.tiny import ROOT


@pytest.fixture
def cache_dir():
    """The setting, put back afterwards."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_place_chosen_by_the_user_stays(cache_dir, tmp_path):
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    keep_compilations(tmp_path)
    assert jax.config.jax_compilation_cache_dir == "/elsewhere"


def test_a_restart_finds_what_the_first_start_compiled(tmp_path):
    flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    environment = {
        **{key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"},
        "XLA_FLAGS": flags,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    cache = tmp_path / "compilation_cache"
    short = {"duration": "2 steps", "schedule.warmup": "1 steps"}
    found = []
    for _ in range(2):
        done = subprocess.run(command(tmp_path, short), cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append({path.name for path in cache.iterdir() if "train_step" in path.name})
        shutil.rmtree(tmp_path / "checkpoints")  # so that the second one compiles its step again
    assert found[0] and found[0] == found[1]
