"""Pre-training checkpoints of MiliLab/SelectiveMAE."""

from __future__ import annotations

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS, linear, norm, timm_encoder
from mim_jax.interop.layout import Context, Fused, Ignored, Layout, Rule

_UNUSED = r"^(pos_embed_probs$|get_token_probs\.|get_token_probs_linear\.|decoder_embed1\.)"


def layout(context: Context) -> Layout:
    """Rules for the encoder and for the decoder of cross-attention."""
    context.require_backbone("vit")
    config, encoder, decoder = context.config, context.encoder, "params/decoder"
    rules, fixed = context.positions("pos_embed", encoder, config.model.width, config.model.class_token)
    width = context.mask_token_width(decoder)
    decoder_rules, decoder_fixed = context.positions("decoder_pos_embed", decoder, width, config.model.class_token)
    attention = "decoder_blocks.{i}.cross_attn"
    return Layout(
        rules=(
            *rules,
            *timm_encoder("", encoder, context),
            Rule(("mask_token",), f"{decoder}/mask_token", axes.TOKEN),
            *decoder_rules,
            *_cross_blocks("decoder_blocks.{i}", attention, f"{decoder}/stack/blocks"),
            *norm("decoder_norm", f"{decoder}/norm"),
            *linear("decoder_pred", f"{decoder}/prediction"),
        ),
        fixed=(*fixed, *decoder_fixed),
        ignored=(
            Ignored(_UNUSED, "the official forward pass does not use it"),
            Ignored(r"^hog\.", "the constants of a score that is 0 for every image"),
        ),
        fused=tuple(
            Fused(f"{attention}.kv.{kind}", (f"{attention}.k.{kind}", f"{attention}.v.{kind}"))
            for kind in ("weight", "bias")
        ),
        may_miss=(f"{encoder}/mask_token",),
        renames=WRAPPERS,
    )


def _cross_blocks(name: str, attention: str, path: str) -> list[Rule]:
    projections = {"q": "query", "k": "key", "v": "value"}
    return [
        *norm(f"{name}.norm1", f"{path}/norm1"),
        *(
            Rule((f"{attention}.{theirs}.weight",), f"{path}/cross_attention/{ours}/kernel", axes.HEADS)
            for theirs, ours in projections.items()
        ),
        *(
            Rule((f"{attention}.{theirs}.bias",), f"{path}/cross_attention/{ours}/bias", axes.HEAD_BIAS)
            for theirs, ours in projections.items()
        ),
        Rule((f"{attention}.proj.weight",), f"{path}/cross_attention/out/kernel", axes.ATTENTION_OUT),
        Rule((f"{attention}.proj.bias",), f"{path}/cross_attention/out/bias"),
        *norm(f"{name}.norm2", f"{path}/norm2"),
        *linear(f"{name}.mlp.fc1", f"{path}/mlp/fc1"),
        *linear(f"{name}.mlp.fc2", f"{path}/mlp/fc2"),
    ]
