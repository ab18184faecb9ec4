"""What happens to updates that the step refused: counted, or the end of the run with everything a post-mortem needs."""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mim_jax.data.order import TrainOrder
from mim_jax.errors import ConfigError, TrainingError
from mim_jax.files import replace_text
from mim_jax.training.checkpoint import Checkpointer
from mim_jax.training.state import TrainState

logger = logging.getLogger(__name__)


class Guard:
    """Watches the metrics of every step for updates that were skipped."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, num_examples: int):
        """Raises ConfigError where `nonfinite` or `spike_factor` makes no sense."""
        if config.nonfinite not in ("stop", "skip"):
            raise ConfigError(f"nonfinite is {config.nonfinite!r}; choose 'stop' or 'skip'.")
        if config.spike_factor is not None and config.spike_factor <= 1:
            raise ConfigError(f"spike_factor is {config.spike_factor}; it must exceed 1, such as 20.0, or be None.")
        self._config = config
        self._folder = workdir / "diagnostics"
        self._order = TrainOrder(config.seed, num_examples, config.batch_size, config.data.repeats)

    def check(
        self, step: int, metrics: Mapping[str, Any], state: TrainState, make_meta: Callable[[], dict[str, Any]]
    ) -> None:
        """Looks at the metrics of the update that made `step`; `state` is the newest one, which is finite in any case.

        `make_meta` gives the metadata to save with it, and is called only then: this runs at every step.

        Raises:
          TrainingError: the update was refused and the run may not go on; a report and `state` are saved first.
        """
        if bool(metrics["finite"]) and not bool(metrics["spike"]):
            return
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        trouble = _trouble(values, self._config.spike_factor)
        consecutive = int(values["consecutive_skipped"])
        if self._config.nonfinite == "skip" and consecutive <= self._config.max_skipped:
            logger.warning("Step %d %s; its update was skipped (%d in a row).", step, trouble, consecutive)
            return
        self._write_report(step, values)
        diagnostic = Checkpointer(self._folder / f"step_{step:08d}", asynchronous=False)
        diagnostic.save(state, make_meta())
        diagnostic.close()
        raise TrainingError(
            f"Step {step} {trouble}; the last good state and the batch's examples are under {self._folder}. "
            "Lower optimizer.lr, set optimizer.clip_norm, or nonfinite='skip'."
        )

    def _write_report(self, step: int, values: dict[str, float]) -> None:
        if jax.process_index() != 0:
            return
        # Data, masks and noise are functions of these, so the step can be computed again.
        positions = self._order.positions(step - 1, 0, self._config.batch_size)
        report = {
            "step": step,
            "metrics": {k: v if np.isfinite(v) else str(v) for k, v in values.items()},
            "rng": f"jax.random.fold_in(jax.random.key({self._config.seed}), {step - 1})",
            "positions": [int(positions[0]), int(positions[-1]) + 1],
            "examples": self._order.indices(positions).tolist(),
        }
        self._folder.mkdir(exist_ok=True)
        replace_text(self._folder / f"skipped_{step:08d}.json", json.dumps(report, indent=1) + "\n")


def _trouble(values: Mapping[str, float], spike_factor: float | None) -> str:
    norm = values["grad_norm"]
    if values["spike"]:
        typical = values["typical_grad_norm"]
        return f"has a gradient norm of {norm:.4g}, over {spike_factor:g} times the usual {typical:.4g}"
    terms = ", ".join(f"{k} {v:.4g}" for k, v in values.items() if k == "loss" or k.startswith("terms/"))
    return f"is not finite ({terms}, grad_norm {norm:.4g})"
