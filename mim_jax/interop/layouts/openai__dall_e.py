"""The discrete VAE of openai/DALL-E: the state_dict of its encoder, or a mapping with "encoder" and "decoder"."""

from __future__ import annotations

from mim_jax.interop.blocks import WRAPPERS
from mim_jax.interop.dvae_blocks import dvae_network
from mim_jax.interop.layout import Context, Layout


def layout(context: Context) -> Layout:
    """Rules for both networks; the two published files have the same names, and one by itself is the encoder's."""
    context.require_backbone("dvae")
    sizes = context.config.model
    return Layout(
        rules=(
            *dvae_network("encoder.", "params/encoder", sizes),
            *dvae_network("decoder.", "params/decoder", sizes),
        ),
        containers=("encoder", "decoder"),
        renames=(*WRAPPERS, (r"^blocks\.", "encoder.blocks.")),
    )
