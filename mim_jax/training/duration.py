"""Durations written as in papers: "600 steps", "100 epochs", "1000000 images"."""

from __future__ import annotations

import dataclasses
import re

from mim_jax.errors import ConfigError

_FORM = re.compile(r"^\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*(steps?|epochs?|images?)\s*$")


@dataclasses.dataclass(frozen=True)
class RunLength:
    """Converts durations to optimiser steps for one data set and batch size."""

    num_examples: int
    batch_size: int

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which the stream passes over the data once; not always whole."""
        return self.num_examples / self.batch_size

    def steps(self, duration: str, key: str) -> int:
        """Whole steps of a duration, rounded down; `key` is the config key named in errors.

        Raises:
          ConfigError: the text is no duration, or it is a positive one shorter than a step.
        """
        match = _FORM.match(duration)
        if not match:
            raise ConfigError(
                f"{key} is {duration!r}; write a duration like '600 steps', '100 epochs' or '1e6 images'."
            )
        amount, unit = float(match[1]), match[2].rstrip("s")
        per_unit = {"step": 1.0, "epoch": self.steps_per_epoch, "image": 1.0 / self.batch_size}[unit]
        # The margin undoes rounding of products like 3 * (1000 / 10), which must be 300 and not 299.
        steps = int(amount * per_unit * (1 + 1e-12))
        if amount > 0 and steps == 0:
            raise ConfigError(f"{key} is {duration!r}, less than one step of {self.batch_size} images; lengthen it.")
        return steps

    def optional_steps(self, duration: str | None, key: str) -> int | None:
        """`steps`, with None for None."""
        return None if duration is None else self.steps(duration, key)
