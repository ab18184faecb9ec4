"""Pre-training checkpoints of Atten4Vis/CAE, both versions ("regresser" is their spelling).

The official code loads its tokenizer, or CLIP, from another file; tensors of that are known by the prefix "teacher.".
"""

from __future__ import annotations

import numpy as np

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS, linear, norm, timm_blocks, timm_encoder
from mim_jax.interop.dvae_blocks import dvae_network
from mim_jax.interop.layout import Context, Fixed, Ignored, Layout, Rule
from mim_jax.interop.teacher_blocks import clip_encoder
from mim_jax.layers.position import sincos_table

_GAMMAS = ("gamma_1", "gamma_2")


def layout(context: Context) -> Layout:
    """Rules for encoder, regressor, decoder and teacher; of the alignment encoder, a copy, nothing is read."""
    context.require_backbone("vit")
    config, encoder, regressor = context.config, context.encoder, "params/regressor"
    rules, fixed = context.positions("encoder.pos_embed", encoder, config.model.width, config.model.class_token)
    if regressor in context.parts:
        table = np.pad(sincos_table(context.grid, config.regressor.width, rows_first=True), ((1, 0), (0, 0)))
        remedy = "set image_size and model.patch_size to those of the file"
        fixed.append(Fixed("rd_pos_embed", f"{regressor}/position/table", table[None], remedy))
    ignored = [
        Ignored(r"^alignment_encoder\.", "it is the encoder once more"),
        Ignored(r"^rd_pos_embed$", "positions are computed here"),
        Ignored(r"^teacher\.(?!blocks\.|visual\.)", "CLIP's text encoder belongs to no encoder here"),
    ]
    if f"{regressor}/norm/scale" in context.shapes:
        rules += norm("regresser.norm", f"{regressor}/norm")
    else:
        ignored.append(Ignored(r"^regresser\.norm\.", "the official forward pass does not use it"))
    return Layout(
        rules=(
            *rules,
            *timm_encoder("encoder.", encoder, context, gammas=_GAMMAS),
            *linear("encoder_to_regresser", "params/projection/dense"),
            *norm("encoder_to_regresser_norm", "params/projection/norm"),
            Rule(("mask_token",), f"{regressor}/mask_token", axes.TOKEN),
            *_regressor_blocks("regresser.regressor_blocks.{i}", f"{regressor}/stack/blocks"),
            *timm_blocks("decoder.decoder_blocks", "params/decoder", gammas=_GAMMAS),
            *norm("decoder.norm", "params/decoder/norm"),
            *linear("decoder.head", "params/decoder/prediction"),
            *_teacher(context),
        ),
        fixed=tuple(fixed),
        ignored=tuple(ignored),
        may_miss=(f"{encoder}/mask_token",),
        containers=("model", "state_dict", "teacher"),
        renames=WRAPPERS,
    )


def _teacher(context: Context) -> list[Rule]:
    if "tokenizer" in context.config:
        return dvae_network("teacher.", "teacher/tokenizer", context.config.tokenizer)
    part = "teacher/teacher"
    return [
        *clip_encoder("teacher.visual.", f"{part}/encoder", context),
        Rule(("teacher.visual.proj",), f"{part}/projection/kernel"),
    ]


def _regressor_blocks(name: str, path: str) -> list[Rule]:
    attention, ours = f"{name}.cross_attn", f"{path}/cross_attention"
    return [
        *(
            rule
            for part in ("query", "key", "value")
            for rule in norm(f"{name}.norm1_{part[0]}", f"{path}/norm_{part}")
        ),
        *(
            Rule((f"{attention}.{part[0]}.weight",), f"{ours}/{part}/kernel", axes.HEADS)
            for part in ("query", "key", "value")
        ),
        *(Rule((f"{attention}.{part[0]}_bias",), f"{ours}/{part}/bias", axes.HEAD_BIAS) for part in ("query", "value")),
        Rule((f"{attention}.proj.weight",), f"{ours}/out/kernel", axes.ATTENTION_OUT),
        Rule((f"{attention}.proj.bias",), f"{ours}/out/bias"),
        Rule((f"{name}.gamma_1_cross",), f"{path}/gamma1"),
        *norm(f"{name}.norm2_cross", f"{path}/norm2"),
        *linear(f"{name}.mlp_cross.fc1", f"{path}/mlp/fc1"),
        *linear(f"{name}.mlp_cross.fc2", f"{path}/mlp/fc2"),
        Rule((f"{name}.gamma_2_cross",), f"{path}/gamma2"),
    ]
