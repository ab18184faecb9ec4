"""Checkpoints of the masked autoencoders of Ma-Lab-Berkeley/CRATE (`model/crate_ae`).

`pos_embed` and `decoder_embed` are in the files but not used by the official forward pass; they are skipped, and not
written on export, so that the official code reads an exported file with `strict=False`.
"""

from __future__ import annotations

import numpy as np

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS, linear, norm, patch_embed
from mim_jax.interop.layout import Context, Fixed, Ignored, Layout, Rule
from mim_jax.layers.position import sincos_table

_UNUSED = Ignored(r"^(pos_embed|decoder_embed\.(weight|bias))$", "the official forward pass does not use it")


def _attention(name: str, path: str) -> list[Rule]:
    return [
        Rule((f"{name}.qkv.weight",), f"{path}/subspaces/kernel", axes.HEADS),
        Rule((f"{name}.to_out.0.weight",), f"{path}/out/kernel", axes.ATTENTION_OUT),
        Rule((f"{name}.to_out.0.bias",), f"{path}/out/bias"),
    ]


def _encoder_blocks(path: str) -> list[Rule]:
    first, second = "blocks.{i}.layers.0.0", "blocks.{i}.layers.0.1"
    return [
        *norm(f"{first}.norm", f"{path}/norm1"),
        *_attention(f"{first}.fn", f"{path}/attention"),
        *norm(f"{second}.norm", f"{path}/norm2"),
        Rule((f"{second}.fn.weight",), f"{path}/ista/kernel", axes.LINEAR),
    ]


def _decoder_blocks(path: str) -> list[Rule]:
    first, second = "decoder_blocks.{i}.layers.0.0", "decoder_blocks.{i}.layers.0.1"
    return [
        *norm(f"{first}.norm", f"{path}/norm1"),
        Rule((f"{first}.fn.weight",), f"{path}/linear/kernel", axes.LINEAR),
        *norm(f"{second}.norm", f"{path}/norm2"),
        *_attention(f"{second}.fn", f"{path}/attention"),
    ]


def layout(context: Context) -> Layout:
    """Rules for encoder and decoder. The position table of the encoder is the one called the decoder's."""
    context.require_backbone("crate")
    model, encoder, decoder = context.config.model, context.encoder, "params/decoder"
    table = np.pad(sincos_table(context.grid, model.width), ((int(model.class_token), 0), (0, 0)))[None]
    positions = Fixed(
        "decoder_pos_embed", f"{encoder}/position/table", table, "it cannot be changed here", grid=context.grid
    )
    return Layout(
        rules=(
            Rule(("cls_token",), f"{encoder}/class_token", axes.TOKEN),
            Rule(("mask_token",), f"{encoder}/mask_token", axes.TOKEN, may_drop=True),
            *patch_embed("patch_embed.proj", encoder, context),
            *_encoder_blocks(f"{encoder}/stack/blocks"),
            *norm("norm", f"{encoder}/norm", may_drop=True),
            *_decoder_blocks(f"{decoder}/stack/blocks"),
            *norm("decoder_norm", f"{decoder}/norm"),
            *linear("decoder_pred", f"{decoder}/prediction"),
        ),
        fixed=(positions,),
        ignored=(_UNUSED,),
        renames=WRAPPERS,
    )
