"""Pre-training checkpoints of carlosh93/ColorMAE, and of any MAE trained with mmpretrain."""

from __future__ import annotations

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS, linear, norm, patch_embed
from mim_jax.interop.layout import Context, Ignored, Layout, Rule


def layout(context: Context) -> Layout:
    """Rules for the encoder ("backbone") and MAE's decoder ("neck").

    The fixed tables of these files have the halves exchanged: `model.position` must be "sincos_rows_first".
    """
    context.require_backbone("vit")
    config, encoder, decoder = context.config, context.encoder, "params/decoder"
    width = context.mask_token_width(decoder)
    rules, fixed = context.positions("backbone.pos_embed", encoder, config.model.width, config.model.class_token)
    more_rules, more_fixed = context.positions("neck.decoder_pos_embed", decoder, width, config.model.class_token)
    return Layout(
        rules=(
            *rules,
            Rule(("backbone.cls_token",), f"{encoder}/class_token", axes.TOKEN),
            *patch_embed("backbone.patch_embed.projection", encoder, context),
            *_blocks("backbone.layers", encoder),
            *norm("backbone.ln1", f"{encoder}/norm", may_drop=True),
            *more_rules,
            *linear("neck.decoder_embed", f"{decoder}/embed"),
            Rule(("neck.mask_token",), f"{decoder}/mask_token", axes.TOKEN),
            *_blocks("neck.decoder_blocks", decoder),
            *norm("neck.ln1", f"{decoder}/norm"),
            *linear("neck.decoder_pred", f"{decoder}/prediction"),
        ),
        fixed=(*fixed, *more_fixed),
        ignored=(Ignored(r"^data_preprocessor\.", "images come normalised"),),
        may_miss=(f"{encoder}/mask_token",),
        renames=WRAPPERS,
    )


def _blocks(prefix: str, part: str) -> list[Rule]:
    """Blocks as mmpretrain names them: `layers.0.ffn.layers.0.0.weight`."""
    name, path = f"{prefix}.{{i}}", f"{part}/stack/blocks"
    return [
        *norm(f"{name}.ln1", f"{path}/norm1"),
        Rule((f"{name}.attn.qkv.weight",), f"{path}/attention/qkv/kernel", axes.FUSED_QKV),
        Rule((f"{name}.attn.qkv.bias",), f"{path}/attention/qkv/bias", axes.FUSED_QKV_BIAS),
        Rule((f"{name}.attn.proj.weight",), f"{path}/attention/out/kernel", axes.ATTENTION_OUT),
        Rule((f"{name}.attn.proj.bias",), f"{path}/attention/out/bias"),
        *norm(f"{name}.ln2", f"{path}/norm2"),
        *linear(f"{name}.ffn.layers.0.0", f"{path}/mlp/fc1"),
        *linear(f"{name}.ffn.layers.1", f"{path}/mlp/fc2"),
    ]
