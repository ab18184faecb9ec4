"""The package requires what it imports, does without TensorFlow where it says so, and CI runs `make test`."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import pathlib
import re
import stat
import subprocess
import sys

import pytest

import mim_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Imported only where a user asked for what they provide.
OPTIONAL = {"torch"}


@pytest.fixture(scope="module")
def setup_arguments() -> dict:
    """What setup.py passes to setuptools."""
    script = (
        "import json, setuptools as s, runpy; s.setup = lambda **a: print(json.dumps(a)); runpy.run_path('setup.py')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def distribution(requirement: str) -> str:
    return re.split(r"[\[<>=;! ]", requirement)[0].lower().replace("_", "-")


def test_the_version_is_read_from_the_package(setup_arguments):
    assert setup_arguments["version"] == mim_jax.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", mim_jax.__version__)


def test_every_package_is_installed(setup_arguments):
    folders = {path.parent for path in (ROOT / "mim_jax").rglob("*.py")}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} == set(setup_arguments["packages"])


def test_extras_are_there(setup_arguments):
    assert {"test", "bench", "tpu", "cuda"} <= set(setup_arguments["extras_require"])
    assert setup_arguments["python_requires"] == ">=3.11"


def imported_modules(folder: pathlib.Path) -> set[str]:
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names)


@pytest.mark.parametrize("folder", ["mim_jax", "tools"])
def test_everything_imported_is_required(folder: str, setup_arguments):
    requirements = setup_arguments["install_requires"]
    if folder == "tools":  # the benchmarks say that they need this extra
        requirements = [*requirements, *setup_arguments["extras_require"]["bench"]]
    required = {distribution(requirement) for requirement in requirements}
    own = {"mim_jax", "configs", *(path.stem for path in (ROOT / "tools").glob("*.py"))}
    providers = importlib.metadata.packages_distributions()
    missing = {
        module
        for module in imported_modules(ROOT / folder) - own - OPTIONAL
        if not required & {distribution(name) for name in providers.get(module, [])}
    }
    assert missing == set()


WITHOUT_TENSORFLOW = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_datasets", "array_record", "tensorboard", "torch"):
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Refuse())
import jax
import mim_jax
from mim_jax import data

model = {"width": 24, "depth": 1, "heads": 2, "patch_size": 8}
config = mim_jax.resolve({"method": "mae", "image_size": 16, "batch_size": 4, "model": model,
                          "decoder": {"width": 16, "depth": 1, "heads": 2}, "data": {"source": "synthetic:64"}})
objective = mim_jax.create(config)
batch = next(data.train_batches(config))
clock = mim_jax.Clock.at(0, total_steps=1, steps_per_epoch=1.0)

@jax.jit
def first_loss(rng, batch):
    variables = objective.init(rng, batch)
    masks = objective.masks(variables, batch, rng, clock)
    return objective.loss(variables, batch, masks, rng, clock)[0]

loss = first_loss(jax.random.key(0), batch)
assert float(loss) > 0
assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules)
print("loss", float(loss))
"""


def test_synthetic_training_needs_no_tensorflow():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("loss")


def test_ci_runs_make_test_from_anywhere(tmp_path: pathlib.Path):
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    # A make that says what it was asked for and where.
    fake = tmp_path / "make"
    fake.write_text('#!/bin/sh\necho "$PWD $*"\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{ROOT} test-reliability", f"{ROOT} test"]


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
