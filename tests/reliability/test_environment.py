"""Strange surroundings: a clock that runs backwards, ASCII locales, tight and loose umasks, no HOME, no network."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from mim_jax.evaluation.records import read_rows
from tests.processes import command, losses, run
from tests.reliability.estranged import MODULE
from tests.tiny import ROOT

# Python's own cure for ASCII locales switched off: files open as ASCII where no encoding is given. It is left on where
# the work directory's name is not ASCII, because the C++ library below Orbax takes no name that cannot be decoded.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
CLASSES = {"evaluation.tasks": "('knn',)", "evaluation.knn.k": "(5,)"}
# Read-only even for root, and without any network: namespaces of the child's own.
CAGE = [
    *("unshare", "--map-root-user", "--mount", "--net", "sh", "-c"),
    'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"',
]


def strange(arguments: list[str], program: str) -> list[str]:
    """The command `python -m <program> ...` with a broken clock and no network."""
    at = arguments.index(program)
    return [*arguments[:at], MODULE, *arguments[at:]]


def files_below(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file; bytecode is Python's business."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def assert_trained(workdir: pathlib.Path, steps: int) -> None:
    assert sorted(losses(workdir)) == list(range(1, steps + 1))
    assert (workdir / "checkpoints" / str(steps)).is_dir() and (workdir / "config.json").is_file()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("strange") / "my rüns ✓" / "a b"


def test_backwards_clock_ascii_locale_tight_umask_no_home_and_no_network(workdir):
    arguments = strange(command(workdir, {"log.tensorboard": True, **CLASSES}), "mim_jax.train")
    code, output = run(["env", "-u", "HOME", *arguments], environment={"LC_ALL": "C"}, umask=0o077)
    assert code == 0, output
    assert_trained(workdir, 8)
    modes = {path.stat().st_mode & 0o077 for path in workdir.rglob("*")}
    assert modes == {0}


def test_resuming_files_from_the_future_with_a_loose_umask_and_a_missing_home(workdir):
    future = time.time() + 10 * 365 * 86400
    for path in workdir.rglob("*"):
        os.utime(path, (future, future))
    arguments = command(workdir, {"duration": "10 steps", **CLASSES}, "--allow_config_change")
    environment = {"LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "1", "HOME": str(workdir / "nobody")}
    code, output = run(strange(arguments, "mim_jax.train"), environment=environment, umask=0)
    assert code == 0, output
    assert_trained(workdir, 10)
    assert not (workdir / "nobody").exists()


def test_evaluating_with_an_unwritable_home(workdir):
    flags = [f"--workdir={workdir}", "--task=knn,reconstruct", "--config.evaluation.knn.k=(5,)"]
    arguments = [sys.executable, "-m", MODULE, "mim_jax.evaluate", *flags]
    code, output = run(arguments, environment={"LC_ALL": "POSIX", "HOME": "/proc/nobody"})
    assert code == 0, output
    assert [row["task"] for row in read_rows(workdir / "evaluations.jsonl")] == ["knn", "reconstruct"]
    assert (workdir / "evaluation" / "reconstructions_00000010.png").is_file()
    assert "reconstructions_00000010.png" in output


def test_a_read_only_package_without_network_in_an_ascii_locale(tmp_path):
    package = tmp_path / "site" / "mim_jax"
    shutil.copytree(ROOT / "mim_jax", package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "__init__.py").open("a") as file:
        file.write("\nprint('imported from the copy')\n")
    for path in [package, *package.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    before = files_below(package)
    arguments = command(tmp_path / "a run")
    if subprocess.run([*CAGE, str(package), "true"], capture_output=True).returncode == 0:
        arguments = [*CAGE, str(package), *arguments]
    environment = {**ASCII, "PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": ""}
    code, output = run(arguments, environment=environment)
    assert code == 0, output
    assert "imported from the copy" in output
    assert_trained(tmp_path / "a run", 8)
    assert files_below(package) == before
