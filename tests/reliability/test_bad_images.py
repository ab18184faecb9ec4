"""Unusual, damaged and hostile image files: shown as a viewer shows them, or skipped, counted and named."""

from __future__ import annotations

import itertools
import logging
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mim_jax import data
from mim_jax.data.order import TrainOrder
from mim_jax.errors import DataError
from tests import processes
from tests.data.make import config, encode, sound_files, unreadable_files
from tests.tiny import ROOT

PLAIN = 30  # flat grey images beside the zoo
MIB = 2**20

# Pillow warns of a large image before it is refused.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


def write_zoo(root: pathlib.Path, bad: bool = True) -> pathlib.Path:
    """Two classes of images, all with one name in both versions; without `bad` the unreadable ones are flat grey."""
    for folder in ("a", "b"):
        (root / folder).mkdir(parents=True)
    flat = {f"{level:03d}.png": encode(np.full((20, 20, 3), 4 * level, np.uint8), "PNG") for level in range(PLAIN)}
    for name, content in flat.items():
        (root / "a" / name).write_bytes(content)
    for name, (content, _) in sound_files().items():
        (root / "a" / f"sound-{name}").write_bytes(content)
    for name, content in unreadable_files().items():
        (root / "b" / name).write_bytes(content if bad else flat["007.png"])
    return root


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("zoo"))


def run_config(root: pathlib.Path, **changes):
    return config(f"folder:{root}", **{"max_bad_fraction": 0.5, "mean": (0.0,) * 3, "std": (1.0,) * 3, **changes})


def test_every_file_is_shown_right_or_skipped_and_named(zoo, caplog):
    run = run_config(zoo, eval_crop="resize")
    files = sorted(str(path.relative_to(zoo)) for path in zoo.rglob("*.*"))
    with caplog.at_level(logging.WARNING, "mim_jax"):
        batches = list(data.eval_batches(run, "train", batch_size=16))
    shown = np.concatenate([batch["image"][batch["valid"]] for batch in batches])
    index = np.concatenate([batch["index"][batch["valid"]] for batch in batches])
    pictures = dict(zip((files[number] for number in index), np.rint(shown * 255), strict=True))
    assert len(pictures) == PLAIN + len(sound_files())
    for name, (_, picture) in sound_files().items():
        expected = np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((16, 16), Image.Resampling.BICUBIC))
        assert np.abs(pictures[f"a/sound-{name}"] - expected).mean() < 4.0, name
    messages = [record.getMessage() for record in caplog.records]
    for name in unreadable_files():
        assert sum(f"Unreadable image {zoo}/b/{name}: " in message for message in messages) == 1, name


def test_the_other_samples_and_all_positions_stay(zoo, tmp_path):
    healthy = write_zoo(tmp_path / "healthy", bad=False)
    files = sorted(path.relative_to(zoo) for path in zoo.rglob("*.*"))
    streams = [data.train_batches(run_config(root, batch_size=len(files))) for root in (zoo, healthy)]
    order = TrainOrder(0, len(files), len(files))
    for step, (bad, good) in enumerate(itertools.islice(zip(*streams, strict=True), 2)):
        numbers = order.indices(order.positions(step, 0, len(files)))
        sound = np.array([files[number].parts[0] == "a" for number in numbers])
        assert sound.sum() == PLAIN + len(sound_files())
        np.testing.assert_array_equal(bad["image"][sound], good["image"][sound])
        np.testing.assert_array_equal(bad["label"][sound], good["label"][sound])
        assert not bad["label"][~sound].any()  # readable images of class a stand in for those of class b
        assert np.isfinite(bad["image"]).all()


PEAK = """
import itertools, pathlib, sys
from mim_jax import data
from tests.reliability.test_bad_images import run_config

def memory(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

def show(root):
    for _ in itertools.islice(data.train_batches(run_config(root, batch_size=len(files))), 3):
        pass

zoo, healthy = map(pathlib.Path, sys.argv[1:])
files = list(zoo.rglob("*.*"))
show(healthy)
before = memory("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
show(zoo)
print("more memory:", memory("VmHWM") - before)
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_no_file_takes_much_memory_or_starts_a_program(zoo, tmp_path):
    healthy = write_zoo(tmp_path / "healthy", bad=False)
    ghostscript, started = tmp_path / "bin" / "gs", tmp_path / "started"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\n: > {started}\n")
    ghostscript.chmod(0o755)
    process = subprocess.run(
        [sys.executable, "-c", PEAK, str(zoo), str(healthy)],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{ghostscript.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert int(process.stdout.split("more memory:")[1]) < 200 * MIB
    assert not started.exists()


def test_a_file_too_large_to_be_an_image(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(sound_files()["plain.jpg"][0])
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    (batch,) = data.eval_batches(run_config(tmp_path), "train", batch_size=2)
    assert batch["valid"].tolist() == [True, False]
    assert f"Unreadable image {tmp_path}/sparse.jpg: the file exceeds the limit of" in caplog.text


def test_what_is_no_file_at_all(tmp_path):
    (tmp_path / "a.png").write_bytes(sound_files()["plain.jpg"][0])
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=f"^{tmp_path}/endless.jpg is not a regular file; remove it"):
        list(data.eval_batches(run_config(tmp_path), "train", batch_size=2))


def overrides(zoo: pathlib.Path, max_bad_fraction: float) -> dict:
    return {
        "data.source": f"folder:{zoo}",
        "data.eval_split": None,
        "data.crop": "random_resized",
        "channels": 3,
        "data.max_bad_fraction": max_bad_fraction,
        "image_size": 16,
        "model.patch_size": 4,
    }


def test_a_run_ends_well(zoo, tmp_path):
    code, output = processes.run(processes.command(tmp_path / "run", overrides(zoo, 0.5)))
    assert code == 0, output[-3000:]
    assert sorted(processes.losses(tmp_path / "run")) == list(range(1, 9))
    assert f"Unreadable image {zoo}/b/empty.jpg: the file is empty" in output


def test_too_many_stop_a_run(zoo, tmp_path):
    code, output = processes.run(processes.command(tmp_path / "run", overrides(zoo, 0.05)))
    last = output.strip().splitlines()[-1]
    assert code == 2 and "images could not be read and data.max_bad_fraction is 0.05" in last, output[-3000:]
    assert f"{zoo}/b/" in last
