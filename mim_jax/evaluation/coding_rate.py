"""What the layers of an encoder do to coding rate and sparsity: the figures of CRATE (Yu et al. 2023, section 3.1)."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mim_jax.models.crate import Crate
from mim_jax.models.vit import ViT

# In a block's attention, the module whose output tells what its heads see of the tokens.
_PROJECTIONS = ("subspaces", "qkv")


def coding_rate(tokens: np.ndarray, epsilon: float = 0.1) -> np.ndarray:
    """Nats that describe tokens `Z [..., N, D]` up to a distortion: `logdet(I + D / (N epsilon^2) Z^T Z) / 2`.

    Every token is scaled to length 1 first, as in the official figures; one that is zero stays so. Their `eps` of 0.01
    is the square.

    Returns:
      `[...]`, between 0 and `min(N, D) log(1 + D / epsilon^2) / 2`.
    """
    number, width = tokens.shape[-2:]
    tokens = tokens.astype(np.float32)
    norms = np.linalg.norm(tokens, axis=-1, keepdims=True)
    z = tokens / np.where(norms > 0.0, norms, 1.0)
    transposed = z.swapaxes(-1, -2)
    # Both Gram matrices have the same determinant; the smaller one is cheaper.
    gram = transposed @ z if width <= number else z @ transposed
    volume = np.eye(gram.shape[-1]) + width / (number * epsilon**2) * gram.astype(np.float64)
    return np.linalg.slogdet(volume).logabsdet / 2


def subspace_coding_rate(coordinates: np.ndarray, epsilon: float = 0.1) -> np.ndarray:
    """`R^c`, the sum over heads of the coding rate of tokens in each head's subspace.

    Args:
      coordinates: `U_k^T Z`, `[..., N, H, Dh]`.
      epsilon: of the distortion.

    Returns:
      `[...]`.
    """
    return coding_rate(np.moveaxis(coordinates, -2, -3), epsilon).sum(axis=-1)


def nonzero_share(tokens: np.ndarray) -> np.ndarray:
    """The share of entries of `[..., N, D]` that are not zero, `[...]`."""
    return (tokens != 0).mean(axis=(-2, -1))


def layer_tokens(encoder: Crate | ViT, params: Any, images: jax.Array) -> dict[str, jax.Array]:
    """What every block of `encoder` makes of `images [B, H, W, C]`; jit-able.

    Returns:
      `output`: tokens `[depth, B, N, D]`, the class token among them; in a CRATE those of the sparsifying step.
      `coordinates`: `[depth, B, N, H, Dh]`, the normalised input in the subspaces of the block's attention. A ViT has
        none; those of its values stand in.
    """
    (_, output), seen = encoder.apply(
        {"params": params},
        images,
        return_layers=True,
        capture_intermediates=lambda module, method: module.name in _PROJECTIONS and method == "__call__",
        mutable=["intermediates"],
    )
    ((name, captured),) = seen["intermediates"]["stack"]["blocks"]["attention"].items()
    (projected,) = captured["__call__"]
    return {"output": output, "coordinates": projected[:, :, :, 2] if name == "qkv" else projected}


def layer_statistics(tokens: dict[str, np.ndarray], epsilon: float = 0.1) -> dict[str, np.ndarray]:
    """Statistics `[depth, B]` of what `layer_tokens` gives.

    On the host: the determinants of many small matrices are no work for an accelerator, and XLA:CPU can wait for ever
    for a factorisation inside a jitted program when all its threads are in others (jaxlib 0.10).

    Returns:
      `compression`: `R^c` of what a block's attention reads, as in the official figures.
      `rate`: the coding rate of the block's output.
      `nonzero`: the share of non-zero entries of the block's output.
    """
    return {
        "compression": subspace_coding_rate(tokens["coordinates"], epsilon),
        "rate": coding_rate(tokens["output"], epsilon),
        "nonzero": nonzero_share(tokens["output"]),
    }
