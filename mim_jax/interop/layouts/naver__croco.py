"""Checkpoints of naver/croco, versions 1 (with sin-cos tables) and 2 (rotary positions, which have no parameters)."""

from __future__ import annotations

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS, linear, norm, patch_embed, timm_blocks
from mim_jax.interop.layout import Context, Fixed, Layout, Rule
from mim_jax.layers.position import sincos_table

_REMEDY = "set model.position to 'sincos' for version 1 and to 'rope' for version 2"


def layout(context: Context) -> Layout:
    """Rules for the encoder and the pre-norm cross decoder."""
    context.require_backbone("vit")
    config, encoder, decoder = context.config, context.encoder, "params/decoder"
    name, path = "dec_blocks.{i}", f"{decoder}/stack/blocks"
    widths = {"enc_pos_embed": (encoder, config.model.width)}
    if decoder_width := context.mask_token_width(decoder):
        widths["dec_pos_embed"] = (decoder, decoder_width)
    fixed = ()
    if config.model.position == "sincos":
        fixed = tuple(
            Fixed(table, f"{part}/position/table", sincos_table(context.grid, width), _REMEDY, required=True)
            for table, (part, width) in widths.items()
        )
    return Layout(
        rules=(
            *patch_embed("patch_embed.proj", encoder, context),
            *timm_blocks("enc_blocks", encoder),
            *norm("enc_norm", f"{encoder}/norm", may_drop=True),
            *linear("decoder_embed", f"{decoder}/embed"),
            Rule(("mask_token",), f"{decoder}/mask_token", axes.TOKEN),
            *norm(f"{name}.norm1", f"{path}/norm_self"),
            Rule((f"{name}.attn.qkv.weight",), f"{path}/attention/qkv/kernel", axes.FUSED_QKV),
            Rule((f"{name}.attn.qkv.bias",), f"{path}/attention/qkv/bias", axes.FUSED_QKV_BIAS),
            Rule((f"{name}.attn.proj.weight",), f"{path}/attention/out/kernel", axes.ATTENTION_OUT),
            Rule((f"{name}.attn.proj.bias",), f"{path}/attention/out/bias"),
            *norm(f"{name}.norm2", f"{path}/norm_cross"),
            *norm(f"{name}.norm_y", f"{path}/norm_memory"),
            *(
                Rule((f"{name}.cross_attn.{theirs}.{kind}",), f"{path}/cross_attention/{ours}/{leaf}", pattern)
                for theirs, ours in (("projq", "query"), ("projk", "key"), ("projv", "value"))
                for kind, leaf, pattern in (("weight", "kernel", axes.HEADS), ("bias", "bias", axes.HEAD_BIAS))
            ),
            Rule((f"{name}.cross_attn.proj.weight",), f"{path}/cross_attention/out/kernel", axes.ATTENTION_OUT),
            Rule((f"{name}.cross_attn.proj.bias",), f"{path}/cross_attention/out/bias"),
            *norm(f"{name}.norm3", f"{path}/norm_mlp"),
            *linear(f"{name}.mlp.fc1", f"{path}/mlp/fc1"),
            *linear(f"{name}.mlp.fc2", f"{path}/mlp/fc2"),
            *norm("dec_norm", f"{decoder}/norm"),
            *linear("prediction_head", f"{decoder}/prediction"),
        ),
        fixed=fixed,
        may_miss=(f"{encoder}/mask_token",),
        renames=WRAPPERS,
    )
