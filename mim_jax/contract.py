"""The contract every method and task fulfils, and the only thing the floors above know about them.

A method is a set of pure functions over plain pytrees:

- `variables`: `{"params": ..., "teacher": ..., "state": ...}`. `params` is trained. `teacher` holds weights no
  gradient reaches (EMA copies, frozen teachers). `state` holds statistics a forward pass changes. The last two exist
  only where a method has them.
- `masks`: what is hidden, a pytree whose every leaf has the batch as its leading axis (so that it can be sharded and
  cut into micro-batches together with the batch).
- `aux`: what `loss` returns beside the scalar: `terms` (every loss term by its name) and, where they exist,
  `metrics` (other scalars worth logging), `prediction`, `target`, `latent`, `pooled` (`[B, D]`, what a regulariser
  reads instead of the latent), and `state` (the new value of `variables["state"]`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError

Batch = Mapping[str, Any]
Variables = dict[str, Any]
Masks = Any

STORED = "taught/"  # before the names of a batch's arrays that were read from disk instead of asking a teacher


def stored_name(path: Sequence[Any]) -> str:
    """The name in a batch of a leaf of what `Objective.teach` returns, by its key path."""
    return STORED + jax.tree_util.keystr(tuple(path), simple=True, separator="/")


@struct.dataclass
class Clock:
    """Where in the run a step stands; every schedule inside a method is a function of it and of nothing else."""

    step: jax.Array | int  # optimiser updates made before this one, int32 []
    epoch: jax.Array | float  # passes over the data made before this step, float32 []
    progress: jax.Array | float  # step / total steps, float32 [] in [0, 1]

    @classmethod
    def at(cls, step, *, total_steps: int, steps_per_epoch: float) -> Clock:
        """The clock of update number `step` (int32 scalar, traced or not) in a run of `total_steps`."""
        step = jnp.asarray(step, jnp.int32)
        position = step.astype(jnp.float32)
        return cls(step=step, epoch=position / steps_per_epoch, progress=position / total_steps)


class FrozenTeacher:
    """A network a method learns from and never changes; its weights are `variables["teacher"][<its name>]`.

    Methods apply it and never load it: the loop does, from what `section` says.
    """

    section: ConfigDict  # with `weights` ("random", a run's directory or a weights file) and `layout` (of a file)
    objective: Objective  # whose variables its weights come from
    layout: str | None  # of a weights file where the section names none
    #: Means and standard deviations `[C]` its input is normalised by; None: those of the batch.
    constants: tuple[Any, Any] | None = None
    #: Whether the first blocks alone are kept of what `objective` has, or the names of the parts of which they are.
    truncated: bool | tuple[str, ...] = False

    def init(self, rng: jax.Array) -> Any:
        """Random weights."""
        return self.take(self.objective.init(rng, self.objective.batch_spec()))

    def take(self, variables: Variables) -> Any:
        """Its weights, from variables of `objective`."""
        raise NotImplementedError


class Objective:
    """A method or task bound to a config. Subclasses override what differs; all functions are pure and jit-able.

    A module under `mim_jax/methods/` or `mim_jax/tasks/` defines exactly one public subclass, found by the module's
    name.
    """

    #: The collection whose "encoder" `encode` uses, which is what a downstream task takes over.
    encoder_collection = "params"
    #: What it asks of an encoder, one of `mim_jax.models.backbone.NEEDS`; None: it has an encoder of its own.
    encoder_needs: str | None = "plain_vit"
    #: Frozen teachers by their name in `variables["teacher"]`; they are stored once and left out of checkpoints.
    teachers: Mapping[str, FrozenTeacher] = MappingProxyType({})

    def __init__(self, config: ConfigDict):
        self.config = config

    @classmethod
    def default_config(cls) -> ConfigDict:
        """Every field the method reads beyond the shared sections, with its default (the paper's ViT-B recipe)."""
        raise NotImplementedError(f"{cls.__name__} does not say what its config fields are.")

    def batch_spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of what `loss` reads from a batch: images here, more where a method says so."""
        image_size = self.config.image_size
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        return {"image": jax.ShapeDtypeStruct((batch_size, height, width, self.config.channels), jnp.float32)}

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """Fresh variables for batches shaped like `batch` (arrays or `jax.ShapeDtypeStruct`)."""
        raise NotImplementedError

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> Masks:
        """What to hide in each image of the batch; `None` for objectives that hide nothing."""
        del variables, batch, rng, clock
        return None

    def teach(self, variables: Variables, batch: Batch) -> dict[str, Any]:
        """What frozen teachers say of the batch's intact images: a dict, or dicts in it, of arrays `[B, ...]`.

        It is a function of the images and of `variables["teacher"]` alone, so that `tools/cache_features.py` can write
        it to disk once. Who overrides it reads it by `taught`.

        Raises:
          ConfigError: there is no such teacher, or with these settings it is not the intact image it is asked about.
        """
        del variables, batch
        raise ConfigError(
            f"{self.config.method or self.config.task} has no frozen teacher that sees nothing but the intact image, "
            "so that there is nothing to store; remove data.teacher_cache."
        )

    def taught(self, variables: Variables, batch: Batch) -> dict[str, Any]:
        """`teach(variables, batch)`, unless the batch brings it along, which then costs nothing.

        It does so as `batch["taught"]`, which `prepare` may put there, or array by array as "taught/<name>", read from
        disk in whatever dtype it was stored.
        """
        if "taught" in batch:
            return batch["taught"]
        if not any(name.startswith(STORED) for name in batch):
            return self.teach(variables, batch)
        shapes = jax.eval_shape(self.teach, variables, batch)
        return jax.tree_util.tree_map_with_path(lambda path, x: batch[stored_name(path)].astype(x.dtype), shapes)

    def prepare(self, variables: Variables, batch: Batch) -> Batch:
        """The batch with what `masks` and `loss` would otherwise both compute, such as features of a frozen teacher.

        The training step calls it once, on the whole batch before that is cut into micro-batches, and both have to work
        without it too. Nothing of it has a gradient, and every array leads with the batch axis.
        """
        del variables
        return batch

    def loss(
        self, variables: Variables, batch: Batch, masks: Masks, rng: jax.Array, clock: Clock
    ) -> tuple[jax.Array, dict[str, Any]]:
        """The scalar float32 training loss and `aux` (see the module's docstring).

        Without randomness, `rng=None`, there is no drop path and no dropout.
        """
        raise NotImplementedError

    def update(self, variables: Variables, clock: Clock) -> Variables:
        """What follows the optimiser's step, such as an EMA teacher; `clock` is that step's own."""
        del clock
        return variables

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images `[B, H, W, C]`: `{"tokens": [B, N, D], "pooled": [B, D], ...}`, float32."""
        raise NotImplementedError

    def reconstruct(self, variables: Variables, batch: Batch, masks: Masks) -> dict[str, jax.Array]:
        """Pictures `[B, H, W, C]` in the batch's normalised units: `original`, `masked`, `reconstruction`.

        Raises:
          ConfigError: the method predicts nothing one can look at.
        """
        raise ConfigError(
            f"{type(self).__name__} predicts nothing one can look at; remove 'reconstruct' from evaluation.tasks."
        )

    def evaluated(self, variables: Variables) -> Variables:
        """The parameters that `encode` uses and that a run is judged by: `params`, or an average of them."""
        encoder = variables[self.encoder_collection].get("encoder")
        return variables["params"] if encoder is None else {**variables["params"], "encoder": encoder}

    def stage(self, progress: float) -> Objective:
        """The objective with the static sizes that hold at `progress`; itself unless token counts change."""
        del progress
        return self
