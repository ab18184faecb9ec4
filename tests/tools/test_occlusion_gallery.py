"""The figure of occluded photographs, with the curves of a run."""

import os
import subprocess
import sys

import numpy as np
from PIL import Image

import mim_jax
from tests.tiny import ROOT
from tests.training.runs import untrained_run

TINY = {
    "data.source": "synthetic:100",
    "data.flip": False,
    "model.depths": (1, 1),
    "model.widths": (2, 4),
    "model.stem_width": 4,
    "batch_size": 16,
    "duration": "2 steps",
    "schedule.warmup": "1 steps",
    "evaluation.every": None,
}


def draw(*arguments):
    return subprocess.run(
        [sys.executable, "tools/occlusion_gallery.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_is_occluded(tmp_path):
    config = mim_jax.load_config(str(ROOT / "configs" / "supervised_resnet_fashion_mnist.py"), TINY)
    run = untrained_run(config, tmp_path / "run")
    done = draw(f"--workdir={run}", "--examples=100", f"--out={tmp_path / 'a.png'}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines if ":" in line] == ["random blocks", "most salient blocks first"]
    for line in lines:
        masking, *points = line.split()
        if masking in ("layer", "grey", "black"):
            assert len(points) == 11 and points[0].split("/")[1] == "100.0"  # nothing removed, nothing changed
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape[0] > 600 and picture.std() > 20


def test_a_run_of_something_else_is_refused(tmp_path):
    done = draw("--workdir=nowhere", f"--out={tmp_path / 'a.png'}")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "a.png").exists()
