"""Checkpoints of mx-mark/DMJD, whose encoder is ConvMAE's: pre-training with both branches, and fine-tuning."""

from __future__ import annotations

from mim_jax.interop.blocks import WRAPPERS, classifier, linear, mae_decoder, norm
from mim_jax.interop.conv_blocks import conv_vit_encoder
from mim_jax.interop.layout import Context, Layout


def layout(context: Context) -> Layout:
    """Rules for the encoder, the decoder, the visible branch, and a classifier."""
    context.require_backbone("conv_vit")
    config, encoder, decoder, projector = context.config, context.encoder, "params/decoder", "params/projector"
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
            *linear("proj_embed.0", f"{projector}/fc1"),
            *norm("proj_embed.1", f"{projector}/norm1"),
            *linear("proj_embed.3", f"{projector}/fc2"),
            *norm("proj_embed.4", f"{projector}/norm2"),
            *linear("proj_embed.6", f"{projector}/fc3"),
            *linear("predictor.0", f"{projector}/prediction"),
            *norm("fc_norm", "params/norm"),
            *head,
        ),
        fixed=(*fixed, *decoder_fixed),
        ignored=ignored,
        renames=WRAPPERS,
    )
