"""`reconstruct`: what the model makes of the same masked images, step after step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mim_jax import data
from mim_jax.contract import Clock, Variables
from mim_jax.errors import ConfigError
from mim_jax.evaluation.bench import Bench, Snapshot
from mim_jax.evaluation.reconstruct import draw_panel, shade_hidden
from mim_jax.evaluation.task import Result, Task
from mim_jax.files import replace_file


class Reconstruct(Task):
    """Writes `reconstructions_<step>.png`; images and masks are the same at every step. Has no numbers.

    Images come from the evaluation split, or the training split if there is no other. Hidden patches are grey.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """One row of eight images."""
        return ConfigDict(
            dict(
                num_images=8,  # random images of the split
                seed=0,  # chooses the images and their masks
            )
        )

    def __init__(self, bench: Bench):
        super().__init__(bench)
        number = self.settings.num_images
        size = bench.split_size(bench.viewing_split)
        if not 1 <= number <= size:
            raise ConfigError(f"evaluation.reconstruct.num_images is {number}; the split has {size} images.")
        order = np.random.default_rng(self.settings.seed).permutation(size)
        self._chosen = np.sort(order[:number])
        # Raises here, before training, where the objective has nothing to show.
        jax.eval_shape(self._pictures, bench.variable_shapes, bench.objective.batch_spec(number))
        self._draw = jax.jit(self._pictures, out_shardings=bench.place.whole)
        self._batch: dict[str, np.ndarray] | None = None

    def run(self, snapshot: Snapshot) -> Result:
        """See `Task.run`."""
        batch = self._images()
        pictures = jax.device_get(self._draw(snapshot.variables, self.bench.place.replicate(batch)))
        hidden = pictures.pop("hidden")
        constants = data.normalization(self.bench.config)
        pictures = {name: data.denormalize(values, *constants) for name, values in pictures.items()}
        pictures["masked"] = shade_hidden(pictures["masked"], hidden)
        panel = draw_panel(pictures, titles=self._titles(batch), caption=f"step {snapshot.step:,}")
        path = snapshot.out_dir / f"reconstructions_{snapshot.step:08d}.png"
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, lambda file: panel.save(file, format="PNG"))
        return Result(metrics={}, complete=True, details={"images": self._chosen.tolist()}, files=(path,))

    def _pictures(self, variables: Variables, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        objective = self.bench.objective
        start = Clock(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
        masks = objective.masks(variables, batch, jax.random.key(self.settings.seed), start)
        pictures = objective.reconstruct(variables, batch, masks)
        # Objectives show hidden pixels as 0, which a visible one may be too; it then follows a change of the image.
        # Nothing but "masked" is read from the second call, so XLA drops its forward pass.
        brighter = objective.reconstruct(variables, {**batch, "image": batch["image"] + 1.0}, masks)["masked"]
        hidden = (pictures["masked"] == 0.0).all(axis=-1) & (brighter == 0.0).all(axis=-1)
        return {**{name: pictures[name] for name in ("original", "masked", "reconstruction")}, "hidden": hidden}

    def _images(self) -> dict[str, np.ndarray]:
        """The chosen images, whole on every process, in the order they stand in the split."""
        if self._batch is None:
            batch = self.bench.examples(self.bench.viewing_split, self._chosen)
            self._batch = {key: batch[key] for key in ("image", "view2", "label") if key in batch}
        return self._batch

    def _titles(self, batch: dict[str, np.ndarray]) -> list[str] | None:
        names = self.bench.info.class_names
        if names is None or "label" not in batch:
            return None
        return [names[label] if label >= 0 else "" for label in batch["label"].tolist()]
