"""The command line that stores features, and a run that reads them."""

import subprocess
import sys

import pytest

from mim_jax.data.stored_features import StoredFeatures
from mim_jax.errors import ConfigError
from tests.tiny import ROOT
from tools import cache_features as tool

SMALL = {
    "data.source": "synthetic:40",
    "data.flip": "False",
    "batch_size": "16",
    "schedule.warmup": "2 steps",
    "model.depth": "1",
    "model.width": "16",
    "model.heads": "2",
    "teacher.depth": "2",
    "teacher.width": "16",
    "teacher.heads": "2",
    "fusion": "sum",
}


def arguments(out, **overrides):
    changes = {**SMALL, **overrides}
    return [
        "--config=configs/maskalign_fashion_mnist.py",
        f"--out={out}",
        *(f"--config.{name}={value}" for name, value in changes.items()),
    ]


def test_it_says_what_it_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    tool.main([*arguments(tmp_path / "a"), "--config.log.progress=False"])
    printed = capsys.readouterr().out
    stored = StoredFeatures(tmp_path / "a")
    assert f"40 images, {stored.manifest.example_bytes} bytes of features each" in printed and "is whole" in printed
    assert {array.dtype for array in stored.arrays.values()} == {"float16"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.flip": "True"}, "error: data.flip is True, but what a teacher says"),
        ({"teacher.weights": ""}, "error: The teacher 'teacher' has no weights"),
    ],
    ids=["flip", "weights"],
)
def test_mistakes_are_one_sentence(tmp_path, change, message):
    command = [sys.executable, "tools/cache_features.py", *arguments(tmp_path / "a", **change)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr and not (tmp_path / "a").exists()


def test_parts_are_read():
    assert tool.parse_part("1/4") == (1, 4)
    for text in ("4/4", "1", "a/2", "-1/2"):
        with pytest.raises(ConfigError, match="--part is"):
            tool.parse_part(text)
