"""What a batch holds of each example: one view of it, or two (`data.views`).

`image` is always the view a method masks and reconstructs, or simply the first; `view2` is the other one.

| `data.views` | `image` | `view2` |
|---|---|---|
| "one" | a random view (`data.crop`, `data.flip`, colours) | - |
| "same" | a random view | the same again |
| "random" | a random view | another, with crop, flip and colours of its own |
| "weak_strong" | a random view without changed colours | another, with them |
| "global_to_local" | a crop (`data.local_scale`) of `view2`, flipped by itself | a random view |
| "local_to_global" | a random view | a crop (`data.local_scale`) of `image`, flipped by itself |
| "pairs" | a random view of the first picture | one of the second; needs a source of pairs |

Local crops are cut out of the global one as it was resized, before it is flipped (CropMAE). Each view costs the work of
one image; of encoded pictures only the part that a view shows is decoded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from ml_collections import ConfigDict

from mim_jax.data.sources import Examples
from mim_jax.data.stateless import second_seed
from mim_jax.data.transform import Transform, train_transform
from mim_jax.errors import ConfigError

EXAMPLE, PARTNER = "example", "partner"


class BatchView(NamedTuple):
    """One array of a batch and where it comes from."""

    name: str
    of: str  # EXAMPLE, PARTNER (the other picture of a pair), or the name of an earlier view
    transform: Transform | None  # None: the view `of`, once more


def train_views(config: ConfigDict, examples: Examples) -> tuple[BatchView, ...]:
    """The views `config.data.views` asks for, each after those it is made of.

    Raises:
      ConfigError: the examples do not fit, as `train_transform`, or are no pairs.
    """
    kind = config.data.views
    first = train_transform(config, examples)
    second = dataclasses.replace(first, seed=second_seed(config.seed))
    if kind == "same":
        return BatchView("image", EXAMPLE, first), BatchView("view2", "image", None)
    if kind == "global_to_local":
        return BatchView("view2", EXAMPLE, second), BatchView("image", "view2", _local(config, first))
    if kind == "local_to_global":
        return BatchView("image", EXAMPLE, first), BatchView("view2", "image", _local(config, second))
    if kind == "weak_strong":
        return BatchView("image", EXAMPLE, dataclasses.replace(first, color=None)), BatchView("view2", EXAMPLE, second)
    if kind == "pairs":
        check_pairs(config, examples)
        return BatchView("image", EXAMPLE, first), BatchView("view2", PARTNER, second)
    if kind == "random":
        return BatchView("image", EXAMPLE, first), BatchView("view2", EXAMPLE, second)
    return single_view(first)


def single_view(transform: Transform) -> tuple[BatchView, ...]:
    """One view of the example, `image`."""
    return (BatchView("image", EXAMPLE, transform),)


def check_pairs(config: ConfigDict, examples: Examples) -> None:
    """Raises ConfigError if `data.views` is "pairs" and these examples are none."""
    if config.data.views == "pairs" and getattr(examples, "partners", None) is None:
        raise ConfigError(
            f"data.views is 'pairs', but {examples.name} holds single images; set data.source to pairs:DIR, or "
            "data.views to 'random' for two views of the same image."
        )


def check_views(config: ConfigDict, names: Iterable[str]) -> None:
    """Checks `data.views` against the arrays an objective reads from a batch.

    Raises:
      ConfigError: it wants two views and gets one, or the other way round; or it wants clips.
    """
    wants_two, kind = "view2" in names, config.data.views
    name = config.method or config.task
    if "video" in names:
        raise ConfigError(
            f"{name} reads clips, which no data.source has; hand them in by the argument 'batches' of Trainer, or set "
            "num_frames to 1."
        )
    if wants_two and kind == "one":
        raise ConfigError(
            f"{name} reads two views of each example, but data.views is 'one'; choose one of "
            "'random', 'global_to_local', 'local_to_global', 'weak_strong', 'same' and 'pairs'."
        )
    if not wants_two and kind != "one":
        raise ConfigError(f"{name} reads one view of each example, but data.views is {kind!r}; set it to 'one'.")


def _local(config: ConfigDict, transform: Transform) -> Transform:
    return dataclasses.replace(transform, crop="random_resized", crop_scale=tuple(config.data.local_scale))
