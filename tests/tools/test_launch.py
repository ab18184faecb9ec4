"""The launch scripts, with the launchers replaced by programs that run the command they are given on this machine."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.tiny import ROOT

SCRIPTS = ROOT / "tools" / "launch"
ARGUMENTS = [
    "--config=configs/mae_vit_l16_in1k.py",
    "--workdir=/mnt/runs/a run",
    "--config.evaluation.knn.k=(10, 20)",
    "--config.mesh.fsdp=8",
]
# Stands for Python on the machines trained on: notes its arguments and ends with the next exit code of a list.
STUB_PYTHON = """#!/bin/bash
[ "$1" = -m ] && [ "$2" = mim_jax.train ] || exit 99
printf '%s\\0' "${@:3}" > "$RECORD/arguments"
read -r code rest < "$RECORD/codes"
echo "$rest" > "$RECORD/codes"
exit "$code"
"""
# gcloud and xpk get the command as one string, srun as its own arguments.
LAUNCHERS = {
    "gcloud": """#!/bin/bash
printf '%s\\0' "$@" > "$RECORD/launcher"
for argument; do case $argument in --command=*) bash -c "${argument#--command=}" ;; esac; done
""",
    "xpk": """#!/bin/bash
printf '%s\\0' "$@" > "$RECORD/launcher"
for argument; do case $argument in --command=*) bash -c "(${argument#--command=})" ;; esac; done
""",
    "srun": """#!/bin/bash
printf '%s\\0' "$@" > "$RECORD/launcher"
shift
"$@"
""",
    "scontrol": """#!/bin/bash
printf '%s\\0' "$@" > "$RECORD/scontrol"
""",
}


class Launch:
    """Runs a launch script in a directory that looks like the repository, and remembers what it started."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        bin, python = folder / "bin", folder / "home" / "mim_jax" / ".venv" / "bin" / "python"
        for file, text in {**{bin / name: text for name, text in LAUNCHERS.items()}, python: STUB_PYTHON}.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o755)
        (bin / "python").symlink_to(python)
        self.environment = {"PATH": f"{bin}:{os.environ['PATH']}", "HOME": str(folder / "home"), "RECORD": str(folder)}

    def run(self, script: str, *arguments: str, codes: str = "0", **variables: str) -> subprocess.CompletedProcess:
        (self.folder / "codes").write_text(codes + "\n")
        return subprocess.run(
            [SCRIPTS / script, *arguments],
            cwd=self.folder / "home",
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def recorded(self, name: str) -> list[str]:
        return (self.folder / name).read_text().split("\0")[:-1]

    @property
    def codes_left(self) -> list[str]:
        return (self.folder / "codes").read_text().split()


POD = {"TPU": "my slice", "ZONE": "us-central2-b", "RESTART_SECONDS": "0"}
GKE = {"CLUSTER": "c", "TPU_TYPE": "v5litepod-64", "IMAGE": "registry/mim_jax:1"}


def slurm_variables(launch: Launch) -> dict[str, str]:
    return {"SLURM_SUBMIT_DIR": str(launch.folder / "home" / "mim_jax"), "SLURM_JOB_ID": "17"}


@pytest.fixture
def launch(tmp_path):
    return Launch(tmp_path)


def test_the_command_arrives_on_a_tpu_pod_as_it_was_written(launch):
    result = launch.run("tpu_pod.sh", "train", *ARGUMENTS, **POD)
    assert result.returncode == 0, result.stderr
    given = launch.recorded("launcher")
    assert given[:5] == ["compute", "tpus", "tpu-vm", "ssh", "my slice"]
    assert {"--zone=us-central2-b", "--worker=all"} <= set(given)
    assert not [argument for argument in given if argument.startswith("--project")]
    assert launch.recorded("arguments") == ["--distributed", *ARGUMENTS]


@pytest.mark.parametrize("codes", ["75 76 134 0", "75 2 0", "1 0"])
def test_a_tpu_pod_starts_again_where_that_helps(codes, launch):
    result = launch.run("tpu_pod.sh", "train", *ARGUMENTS, codes=codes, **POD, PROJECT="p")
    final = next(code for code in codes.split() if code in ("0", "1", "2"))
    assert result.returncode == int(final)
    assert launch.codes_left == codes.split()[codes.split().index(final) + 1 :]
    assert "--project=p" in launch.recorded("launcher")


def test_a_tpu_pod_gives_up_in_the_end(launch):
    result = launch.run("tpu_pod.sh", "train", *ARGUMENTS, codes="75 75 75 0", **POD, MAX_RESTARTS="2")
    assert (result.returncode, launch.codes_left) == (75, ["0"])
    assert "Given up after 2 restarts" in result.stderr


def test_the_command_arrives_in_a_pod_of_gke_as_it_was_written(launch):
    result = launch.run("xpk.sh", "mae-l", *ARGUMENTS, **GKE)
    assert result.returncode == 0, result.stderr
    given = launch.recorded("launcher")
    assert given[:2] == ["workload", "create"]
    assert {"--workload=mae-l", "--cluster=c", "--tpu-type=v5litepod-64", "--restart-on-exit-codes=75,76"} <= set(given)
    assert launch.recorded("arguments") == ["--distributed", *ARGUMENTS]


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [("0", "0", False), ("75", "0", True), ("134", "3", True), ("2", "0", False), ("76", "100", False)],
)
def test_slurm_queues_it_again_where_that_helps(code, restarts, requeued, launch):
    variables = {**slurm_variables(launch), "SLURM_RESTART_COUNT": restarts}
    result = launch.run("slurm.sh", *ARGUMENTS, codes=code, **variables)
    assert launch.recorded("arguments") == ["--distributed", *ARGUMENTS]
    assert (launch.folder / "scontrol").exists() == requeued
    if requeued:
        assert launch.recorded("scontrol") == ["requeue", "17"]
    assert result.returncode == (0 if requeued else int(code)), result.stderr


def test_what_is_missing_is_named(launch):
    for script, variable in (("tpu_pod.sh", "TPU"), ("xpk.sh", "CLUSTER"), ("slurm.sh", "SLURM_SUBMIT_DIR")):
        result = launch.run(script, "train")
        assert result.returncode != 0
        assert f"{variable}: " in result.stderr and not (launch.folder / "launcher").exists()


def test_the_workers_are_set_up_once_and_updated_after(launch):
    for tool in ("git", "create_venv.sh"):
        file = launch.folder / "bin" / tool
        file.write_text(f'#!/bin/bash\necho "{tool} $*" >> "$RECORD/log"\n')
        file.chmod(0o755)
    tools = launch.folder / "home" / "mim_jax" / "tools"
    tools.mkdir()
    (tools / "create_venv.sh").symlink_to(launch.folder / "bin" / "create_venv.sh")
    python = launch.folder / "home" / "mim_jax" / ".venv" / "bin" / "python"
    python.write_text('#!/bin/bash\necho "$*" >> "$RECORD/log"\n')
    result = launch.run("tpu_pod.sh", "setup", **POD, REPOSITORY="https://example.org/mim_jax")
    assert result.returncode == 0, result.stderr
    log = (launch.folder / "log").read_text().splitlines()
    assert log == ["git pull --ff-only", "create_venv.sh .venv", "-m pip install -q -e .[tpu]"]


def test_what_the_scripts_pass_on_is_accepted_by_train():
    code = (
        "import json, sys\n"
        "from absl import flags\n"
        "from mim_jax import cli, train\n"
        "path, overrides, rest = cli.split_config_arguments(['train', '--distributed', *json.loads(sys.argv[1])])\n"
        "train.define_flags()\n"
        "assert flags.FLAGS(rest) == ['train']\n"
        "config = cli.config_from_command_line(path, overrides)\n"
        "print(json.dumps([flags.FLAGS.distributed, flags.FLAGS.workdir, config.evaluation.knn.k, config.mesh.fsdp]))\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(ARGUMENTS)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [True, "/mnt/runs/a run", [10, 20], 8]
