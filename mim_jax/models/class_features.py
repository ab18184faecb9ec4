"""The class feature of a frozen teacher beside its patches, whatever it pools."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.models.teachers import ViTTeacher


def class_and_patches(teacher: ViTTeacher, params: Any, images: jax.Array) -> dict[str, jax.Array]:
    """`{"class": [B, C], "patch": [B, N, C]}`, float32 and without a gradient, of a batch's `images [B, H, W, C]`.

    Of most teachers these are the class token and the patches after the final norm; without a class token it is the
    mean of these patches. Those that classify by the mean of their patches in spite of a class token (`pool="mean"`:
    dBOT fine-tuned) have one norm, that of this mean: the class feature is the normalised mean of the last block's
    patches, which themselves stay as they are.
    """
    encoder, params = teacher.encoder, jax.lax.stop_gradient(params)
    pools = encoder.pool == "mean" and encoder.class_token
    # Not `teacher(...)`, which gathers the outputs of all blocks.
    tokens = encoder.clone(final_norm=not pools).apply({"params": params}, teacher.prepare(images))
    tokens = jax.lax.stop_gradient(tokens).astype(jnp.float32)
    patches = tokens[:, int(encoder.class_token) :]
    if not pools:
        return {"class": tokens[:, 0] if encoder.class_token else patches.mean(axis=1), "patch": patches}
    norm = nn.LayerNorm(epsilon=encoder.norm_epsilon, use_fast_variance=False)
    return {"class": norm.apply({"params": params["norm"]}, patches.mean(axis=1)), "patch": patches}
