"""Progressive selection of semantic tokens (Wang et al. 2025, SelectiveMAE, section 3.3), with static counts."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mim_jax.errors import ConfigError
from mim_jax.masking.token_mask import num_kept, take_tokens

SELECTIONS = ("progressive", "random")

# Clocks are float32: an epoch that has just begun may read 299.99997.
_ROUNDING = 1e-4


class SelectedTokens(NamedTuple):
    """The two disjoint sets of patches a step touches, int32; any two such arrays do as well."""

    visible: jax.Array  # [B, K], in the order in which the encoder receives them
    predicted: jax.Array  # [B, R], in raster order


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Which candidates join the visible tokens at what time.

    First those most similar to the tokens selected already ("near"), from epoch `far` on the least similar ones, from
    epoch `random` on any. In the `mixing - 1` epochs before each change the shares shift from the one to the other.

    The official numbers are literals for 800 epochs. They are stretched to a run of any length, unless `epochs` is
    None: then they are epochs of the run itself, as they are in the official code, whatever its length.
    """

    far: int = 300
    random: int = 600
    mixing: int = 20
    epochs: int | None = 800

    def __post_init__(self):
        if not 1 <= self.mixing <= self.far <= self.random - self.mixing:
            raise ConfigError(
                f"curriculum.far {self.far}, curriculum.random {self.random} and curriculum.mixing {self.mixing} "
                "overlap; mixing must be at least 1 and fit before each of the two."
            )
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"curriculum.epochs is {self.epochs}; it must be at least 1, or None.")

    def epoch(self, epoch: jax.Array | float, progress: jax.Array | float) -> jax.Array:
        """The curriculum's own epoch, int32 [], from the run's epoch and its progress in [0, 1]."""
        position = epoch if self.epochs is None else progress * self.epochs
        return jnp.floor(jnp.asarray(position, jnp.float32) + _ROUNDING).astype(jnp.int32)

    def counts(self, epoch: jax.Array | int, count: int) -> tuple[jax.Array, jax.Array]:
        """How many of `count` tokens are the nearest and how many the farthest, int32 []; the rest is random."""
        # In Python floats, as the official code truncates them: int((1 - 18 / 20) * 10) is 0 there.
        table = jnp.asarray([int((1 - t / self.mixing) * count) for t in range(self.mixing + 1)], jnp.int32)
        not_far, not_random = (
            table[jnp.clip(epoch - (end - self.mixing), 0, self.mixing)] for end in (self.far, self.random)
        )
        return not_far, not_random - not_far


@dataclasses.dataclass(frozen=True)
class TokenSelector:
    """Draws `SelectedTokens`: half of the visible tokens by score, the others by similarity, in two steps.

    All counts are static and the stages differ in comparisons of ranks only, so that one compiled step serves the whole
    curriculum.
    """

    num_tokens: int
    mask_ratio: float = 0.85  # share of the patches that are not encoded
    predicted_ratio: float = 0.25  # share of the patches that are predicted
    selection: str = "progressive"  # or "random": all visible tokens by score, without regard to similarity
    curriculum: Curriculum = Curriculum()

    def __post_init__(self):
        if self.selection not in SELECTIONS:
            raise ConfigError(f"selection is {self.selection!r}; choose one of {', '.join(SELECTIONS)}.")
        if self.num_visible < 2:
            raise ConfigError(
                f"mask_ratio {self.mask_ratio} keeps {self.num_visible} of {self.num_tokens} patches; lower it, so "
                "that there is one to draw and one to add."
            )
        if not 0 < self.num_predicted <= self.num_tokens - self.num_visible:
            raise ConfigError(
                f"kept_mask_ratio {self.predicted_ratio} predicts {self.num_predicted} patches, of the "
                f"{self.num_tokens - self.num_visible} that mask_ratio {self.mask_ratio} hides; choose at least one "
                "and at most all."
            )

    @property
    def num_visible(self) -> int:
        """Tokens of the encoder, without the class token."""
        return num_kept(self.num_tokens, self.mask_ratio)

    @property
    def num_predicted(self) -> int:
        """Tokens of the decoder."""
        return int(self.num_tokens * self.predicted_ratio)

    @property
    def additions(self) -> tuple[int, int]:
        """How many tokens each of the two steps adds to the half that was drawn."""
        total = self.num_visible - self.num_visible // 2
        return total // 2, total - total // 2

    def __call__(
        self, rng: jax.Array, scores: jax.Array, tokens: jax.Array | None, epoch: jax.Array | int
    ) -> SelectedTokens:
        """Selects for a batch.

        Args:
          rng: for all draws.
          scores: log-probabilities `[B, N]` of being drawn, up to a constant.
          tokens: `[B, N, D]`, by whose cosine similarity tokens are near or far; None for `selection="random"`.
          epoch: the curriculum's, int32 [].
        """
        draw_rng, rank_rng, predict_rng = jax.random.split(rng, 3)
        if self.selection == "random":
            visible = draw(draw_rng, scores, self.num_visible)
        else:
            visible = draw(draw_rng, scores, self.num_visible // 2)
            visible = self._expand(rank_rng, visible, tokens, epoch)
        scores = jnp.where(_contains(visible, self.num_tokens), -jnp.inf, scores)
        predicted = jnp.sort(draw(predict_rng, scores, self.num_predicted), axis=1)
        return SelectedTokens(visible, predicted)

    def _expand(self, rng: jax.Array, visible: jax.Array, tokens: jax.Array, epoch: jax.Array | int) -> jax.Array:
        tokens = tokens.astype(jnp.float32)
        tokens = tokens / jnp.maximum(jnp.linalg.norm(tokens, axis=-1, keepdims=True), 1e-12)
        similarity = _largest_product(tokens, visible)
        for count, step_rng in zip(self.additions, jax.random.split(rng), strict=True):
            chosen = _contains(visible, self.num_tokens)
            candidates = self.num_tokens - visible.shape[1]
            ascending = jnp.argsort(jnp.where(chosen, jnp.inf, similarity), axis=1)[:, :candidates]
            ranks = choose_ranks(step_rng, candidates, count, *self.curriculum.counts(epoch, count))
            added = ascending[:, ranks].astype(jnp.int32)
            visible = jnp.concatenate([visible, added], axis=1)
            similarity = jnp.maximum(similarity, _largest_product(tokens, added))
        return visible


def choose_ranks(rng: jax.Array, candidates: int, count: int, highest: jax.Array, lowest: jax.Array) -> jax.Array:
    """`count` of the ranks `0 ... candidates - 1`, rising: the `highest` last, the `lowest` first, others at random.

    One choice for a whole batch, as in the official code. `highest` and `lowest` may be traced.
    """
    rank = jnp.arange(candidates, dtype=jnp.int32)
    certain = (rank >= candidates - highest) | (rank < lowest)
    priority = jnp.where(certain, -1.0, jax.random.uniform(rng, (candidates,), jnp.float32))
    return jnp.sort(jnp.argsort(priority)[:count]).astype(jnp.int32)


def draw(rng: jax.Array, scores: jax.Array, count: int) -> jax.Array:
    """`count` indices per row without replacement, with probabilities `softmax(scores [B, N])`: `[B, count]` int32.

    The order is that of the draws (Gumbel's trick).
    """
    noisy = scores + jax.random.gumbel(rng, scores.shape, jnp.float32)
    return jnp.argsort(-noisy, axis=1)[:, :count].astype(jnp.int32)


def _contains(ids: jax.Array, num_tokens: int) -> jax.Array:
    """Whether each token is among `ids [B, K]`: `[B, num_tokens]` bool."""
    return (ids[:, :, None] == jnp.arange(num_tokens, dtype=ids.dtype)[None, None]).any(axis=1)


def _largest_product(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Of every token of `[B, N, D]`, the largest inner product with one of those at `ids [B, K]`: `[B, N]`."""
    others = take_tokens(tokens, ids)
    return jnp.einsum("bnd,bkd->bnk", tokens, others, precision="highest").max(axis=-1)
