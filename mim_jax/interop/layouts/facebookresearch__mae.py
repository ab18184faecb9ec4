"""Checkpoints of facebookresearch/mae: pre-training with or without the decoder, fine-tuning, linear probing."""

from __future__ import annotations

from mim_jax.interop.blocks import WRAPPERS, classifier, mae_decoder, norm, timm_encoder
from mim_jax.interop.layout import Context, Ignored, Layout, Rule


def layout(context: Context) -> Layout:
    """Rules for any ViT encoder, MAE's decoder, and the heads of the downstream tasks."""
    context.require_backbone("vit")
    config, encoder, decoder = context.config, context.encoder, "params/decoder"
    decoder_width = context.mask_token_width(decoder)
    rules, fixed = context.positions("pos_embed", encoder, config.model.width, config.model.class_token)
    decoder_rules, decoder_fixed = context.positions(
        "decoder_pos_embed", decoder, decoder_width, config.model.class_token
    )
    probe = "state/batch_norm" in context.parts
    head, ignored = classifier("head.1" if probe else "head", context)
    if probe:  # of a fine-tuned file: another head, for features that are not normalised
        ignored = (
            Ignored(r"^head\.(weight|bias)$", "the head of another classifier", quiet=False),
            Ignored(r"^head\.0\.num_batches_tracked$", "the momentum of the statistics is constant"),
        )
    return Layout(
        rules=(
            *rules,
            *timm_encoder("", encoder, context),
            *decoder_rules,
            *mae_decoder("", decoder),
            *norm("fc_norm", "params/norm"),
            *head,
            Rule(("head.0.running_mean",), "state/batch_norm/mean"),
            Rule(("head.0.running_var",), "state/batch_norm/variance"),
        ),
        fixed=(*fixed, *decoder_fixed),
        ignored=ignored,
        may_miss=(f"{encoder}/mask_token",),
        renames=WRAPPERS,
    )
