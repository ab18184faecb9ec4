"""Strict JAX for every test: eight simulated devices, no implicit dtype or rank promotion, no legacy keys."""

import gc
import importlib.metadata
import os

_FLAGS = "--xla_force_host_platform_device_count=8"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA aborts at a flag it does not know (any more)
    # The older way to emit fused loops, which compiles a tiny network's step in half the time.
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
    # Functions this small gain nothing from being split over threads, of which the other worker needs one.
    _FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", _FLAGS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# The networks here are tiny: compiling them costs far more than running them, and twice as much with optimisations on.
# It is a variable for the sake of the processes that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import orbax.checkpoint as ocp
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")
# Below this, writing a compiled program down costs more than it saves.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# Orbax has each device save a part of what all of them hold, and compiles a program for every shape and part to cut it
# out; parts this large no array here has. The setting is not public: should it be gone, tests are slower, that is all.
ocp.type_handlers.get_type_handler(jax.Array)._min_slice_bytes_for_replica_parallel = 2**20
# Tracing makes many small objects, nearly all of which live on: looking for garbage among them is a sixth of its cost.
gc.set_threshold(200_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def _share_what_is_compiled(tmp_path_factory):
    """The programs of a session are compiled once: by one of its workers, not in every test's own work directory."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))


@pytest.fixture(scope="module", autouse=True)
def _let_compiled_programs_go():
    """A worker that keeps what all modules compiled needs gigabytes."""
    yield
    jax.clear_caches()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist=loadgroup` one worker gets all tests that share what they compile.

    These are the tests of a file, in the contract suite those of a method. Tests of configs share nothing.
    """
    for item in items:
        file = item.nodeid.partition("::")[0]
        if not file.startswith("tests/configs/"):
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            item.add_marker(pytest.mark.xdist_group(f"{file}:{parameters.get('subject', '')}"))
