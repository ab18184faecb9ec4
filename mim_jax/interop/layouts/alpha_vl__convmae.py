"""Checkpoints of Alpha-VL/ConvMAE: pre-training, fine-tuning."""

from __future__ import annotations

from mim_jax.interop.blocks import WRAPPERS, classifier, mae_decoder, norm
from mim_jax.interop.conv_blocks import conv_vit_encoder
from mim_jax.interop.layout import Context, Layout


def layout(context: Context) -> Layout:
    """Rules for the hybrid encoder, MAE's decoder, and a classifier."""
    context.require_backbone("conv_vit")
    config, encoder, decoder = context.config, context.encoder, "params/decoder"
    decoder_width = context.mask_token_width(decoder)
    rules, fixed = context.positions("pos_embed", encoder, config.model.width, False)
    decoder_rules, decoder_fixed = context.positions("decoder_pos_embed", decoder, decoder_width, False)
    head, ignored = classifier("head", context)
    return Layout(
        rules=(
            *rules,
            *conv_vit_encoder(encoder, context),
            *decoder_rules,
            *mae_decoder("", decoder),
            *norm("fc_norm", "params/norm"),
            *head,
        ),
        fixed=(*fixed, *decoder_fixed),
        ignored=ignored,
        renames=WRAPPERS,
    )
