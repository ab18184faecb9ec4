"""Checkpoints of alexandre-eymael/CropMAE, which holds SiamMAE's as well: encoder and post-norm cross decoder."""

from __future__ import annotations

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS, linear, norm, timm_encoder
from mim_jax.interop.layout import Context, Fused, Layout, Rule


def layout(context: Context) -> Layout:
    """Rules for the encoder, named as in MAE, and the decoder of torch's MultiheadAttention."""
    context.require_backbone("vit")
    config, encoder, decoder = context.config, context.encoder, "params/decoder"
    decoder_width = context.mask_token_width(decoder)
    rules, fixed = context.positions("pos_embed", encoder, config.model.width, config.model.class_token)
    decoder_rules, decoder_fixed = context.positions(
        "decoder_pos_embed", decoder, decoder_width, config.model.class_token
    )
    name, path = "decoder_blocks.{i}", f"{decoder}/stack/blocks"
    cross = f"{name}.multihead_attn"
    return Layout(
        rules=(
            *rules,
            *timm_encoder("", encoder, context),
            *linear("decoder_embed", f"{decoder}/embed"),
            Rule(("mask_token",), f"{decoder}/mask_token", axes.TOKEN),
            *decoder_rules,
            Rule((f"{name}.self_attn.in_proj_weight",), f"{path}/attention/qkv/kernel", axes.FUSED_QKV),
            Rule((f"{name}.self_attn.in_proj_bias",), f"{path}/attention/qkv/bias", axes.FUSED_QKV_BIAS),
            Rule((f"{name}.self_attn.out_proj.weight",), f"{path}/attention/out/kernel", axes.ATTENTION_OUT),
            Rule((f"{name}.self_attn.out_proj.bias",), f"{path}/attention/out/bias"),
            *(
                Rule((f"{cross}.{which}.{kind}",), f"{path}/cross_attention/{which}/{ours}", pattern)
                for which in ("query", "key", "value")
                for kind, ours, pattern in (("weight", "kernel", axes.HEADS), ("bias", "bias", axes.HEAD_BIAS))
            ),
            Rule((f"{cross}.out_proj.weight",), f"{path}/cross_attention/out/kernel", axes.ATTENTION_OUT),
            Rule((f"{cross}.out_proj.bias",), f"{path}/cross_attention/out/bias"),
            *linear(f"{name}.linear1", f"{path}/mlp/fc1"),
            *linear(f"{name}.linear2", f"{path}/mlp/fc2"),
            # Numbered as in torch's TransformerDecoderLayer, not in the order of execution.
            *norm(f"{name}.norm1", f"{path}/norm_self"),
            *norm(f"{name}.norm2", f"{path}/norm_cross"),
            *norm(f"{name}.norm3", f"{path}/norm_mlp"),
            *norm("decoder_norm", f"{decoder}/norm"),
            *linear("decoder_pred", f"{decoder}/prediction"),
        ),
        fixed=(*fixed, *decoder_fixed),
        may_miss=(f"{encoder}/mask_token",),
        fused=tuple(
            Fused(f"{cross}.in_proj_{kind}", tuple(f"{cross}.{which}.{kind}" for which in ("query", "key", "value")))
            for kind in ("weight", "bias")
        ),
        renames=WRAPPERS,
    )
