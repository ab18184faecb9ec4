"""Times the input pipeline: photographs from a folder, cropped, resized, flipped and normalised, beside PyTorch's way.

    python tools/benchmark_input.py [--images=256] [--workers=1,2] [--seconds=10] [--json=FILE]

The images are JPEGs of 500x375 pixels (the median of ImageNet), made from scikit-learn's two photographs. The peer is a
`torch.utils.data.DataLoader` of as many worker processes over Pillow, doing what torchvision's RandomResizedCrop,
RandomHorizontalFlip, ToTensor and Normalize do (torchvision itself decodes and resizes by Pillow too).
"""

from __future__ import annotations

import json
import math
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
from absl import flags
from PIL import Image

import mim_jax
from mim_jax import data
from mim_jax.cli import run_main
from mim_jax.errors import ConfigError

WIDTH, HEIGHT, SIZE, BATCH = 500, 375, 224, 64
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_photographs(folder: pathlib.Path, number: int) -> list[str]:
    """JPEGs of quality 90 cut from scikit-learn's sample photographs at random places."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    paths = []
    for index in range(number):
        picture = pictures[index % len(pictures)]
        width = int(rng.integers(400, min(picture.width, picture.height * WIDTH // HEIGHT) + 1))
        height = width * HEIGHT // WIDTH
        left, top = rng.integers(0, picture.width - width + 1), rng.integers(0, picture.height - height + 1)
        path = folder / f"{index:05d}.jpg"
        picture.resize((WIDTH, HEIGHT), Image.BICUBIC, (left, top, left + width, top + height)).save(path, quality=90)
        paths.append(str(path))
    return paths


def our_batches(folder: pathlib.Path, workers: int) -> Iterator[int]:
    """Sizes of our batches as they arrive."""
    config = mim_jax.default_config(method="mae")
    config.batch_size = BATCH
    config.data.update(source=f"folder:{folder}", num_workers=workers, crop_scale=SCALE)
    for batch in data.train_batches(config):
        yield len(batch["image"])


class Photographs:
    """The peer's data set: what torchvision's transforms do, written with Pillow and PyTorch."""

    def __init__(self, paths: list[str]):
        self._paths = paths * 1000

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int):
        import torch

        with open(self._paths[index], "rb") as file:
            picture = Image.open(file).convert("RGB")
        left, top, width, height = self._crop(picture.width, picture.height, torch.rand(30).tolist())
        picture = picture.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.BICUBIC)
        if torch.rand(1) < 0.5:
            picture = picture.transpose(Image.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        return tensor.sub_(mean).div_(std)

    @staticmethod
    def _crop(width: int, height: int, draws: list[float]) -> tuple[int, int, int, int]:
        for at in range(0, 28, 4):
            area = width * height * (SCALE[0] + draws[at] * (SCALE[1] - SCALE[0]))
            ratio = math.exp(math.log(RATIO[0]) + draws[at + 1] * math.log(RATIO[1] / RATIO[0]))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(draws[at + 2] * (width - w)), int(draws[at + 3] * (height - h)), w, h
        return 0, 0, width, height


def peer_batches(paths: list[str], workers: int) -> Iterator[int]:
    """Sizes of the peer's batches as they arrive."""
    import torch

    loader = torch.utils.data.DataLoader(
        Photographs(paths), BATCH, shuffle=True, num_workers=workers, multiprocessing_context="spawn"
    )
    for batch in loader:
        yield len(batch)


def images_per_second(batches: Callable[[], Iterator[int]], seconds: float) -> float:
    """The rate once the first batches are there, which the workers' start-up precedes."""
    stream = batches()
    for _ in range(4):
        next(stream)
    start, number = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        number += next(stream)
    elapsed = time.perf_counter() - start
    stream.close()
    return number / elapsed


def define_flags() -> None:
    """Defines the command line's flags."""
    flags.DEFINE_integer("images", 256, "JPEGs in the folder.")
    flags.DEFINE_list("workers", ["1", "2"], "Numbers of threads (ours) and processes (the peer's) to try.")
    flags.DEFINE_float("seconds", 10.0, "How long each is measured.")
    flags.DEFINE_integer("rounds", 3, "How often they take turns; the best round counts.")
    flags.DEFINE_string("json", None, "Where to write the numbers.")


def main(config_path: str | None, overrides: dict[str, str]) -> None:
    """Measures and prints a table."""
    given = flags.FLAGS
    if config_path or overrides:
        raise ConfigError("The input benchmark takes no config.")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(pathlib.Path(folder), given.images)
        for workers in map(int, given.workers):
            contestants = {
                "mim_jax": lambda workers=workers: our_batches(pathlib.Path(folder), workers),
                "DataLoader with Pillow": lambda workers=workers: peer_batches(paths, workers),
            }
            rates: dict[str, list[float]] = {name: [] for name in contestants}
            for _ in range(given.rounds):
                for name, batches in contestants.items():
                    rates[name].append(images_per_second(batches, given.seconds))
            best = {name: max(values) for name, values in rates.items()}
            ratio = best["mim_jax"] / best["DataLoader with Pillow"]
            rows.append({"workers": workers, "images_per_second": rates, "ratio_of_best": ratio})
            described = ", ".join(f"{name} {rate:.0f} images/s" for name, rate in best.items())
            print(f"{workers} workers: {described}; ours is {ratio:.2f}x", flush=True)
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    define_flags()
    run_main(main)
