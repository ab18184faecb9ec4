"""`mim_jax.evaluate` or `mim_jax.train` killed inside an evaluation, at the moment that $FAULT names (JSON).

  {"program": "evaluate", "at": "features"}   after the first batch of features
  {"program": "evaluate", "at": "probe"}      within the linear probe
  {"program": "evaluate", "at": "picture"}    a picture is drawn, but half of it is written
  {"program": "evaluate", "at": "row"}        half of a row is in evaluations.jsonl

With "skip", so many calls of that moment pass unharmed first.
"""

from __future__ import annotations

import json
import os
import signal
import time

from PIL import Image

from mim_jax import evaluate, train
from mim_jax.cli import run_main
from mim_jax.evaluation.features import FeatureExtractor
from mim_jax.evaluation.linear_fit import CachedFit

MODULE = "tests.reliability.faulty_evaluation"
PROGRAMS = {"evaluate": evaluate, "train": train}


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal is delivered before this returns


def _strike(owner: type, name: str, skip: int, blow) -> None:
    method, calls = getattr(owner, name), iter(range(10**9))

    def struck(*arguments, **keywords):
        if next(calls) == skip:
            blow(*arguments, **keywords)
        return method(*arguments, **keywords)

    setattr(owner, name, struck)


def _half_a_picture(image: Image.Image, target, **_: object) -> None:
    with open(target, "wb") as file:
        file.write(image.tobytes()[: image.width])
    _kill()


def _half_a_row(path, rows) -> None:
    with open(path, "a") as file:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        file.write(text[: len(text) // 2])
    _kill()


def main(path: str | None, overrides: dict[str, str]) -> None:
    what = json.loads(os.environ["FAULT"])
    skip = what.get("skip", 0)
    if what["at"] == "features":
        _strike(FeatureExtractor, "_put", skip or 1, lambda *_: _kill())
    if what["at"] == "probe":
        _strike(CachedFit, "_train_epoch", skip, lambda *_, **__: _kill())
    if what["at"] == "picture":
        _strike(Image.Image, "save", skip, _half_a_picture)
    if what["at"] == "row":
        _strike(evaluate, "append_rows", skip, _half_a_row)
    PROGRAMS[what["program"]].main(path, overrides)


if __name__ == "__main__":
    PROGRAMS[json.loads(os.environ["FAULT"])["program"]].define_flags()
    run_main(main)
