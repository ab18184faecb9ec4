"""`ViTMAEForPreTraining` and `ViTMAEModel` of transformers."""

from __future__ import annotations

from mim_jax.interop import axes
from mim_jax.interop.blocks import (
    TRANSFORMERS_FREE,
    TRANSFORMERS_RENAMES,
    linear,
    norm,
    transformers_blocks,
    transformers_config,
    transformers_encoder,
)
from mim_jax.interop.layout import Context, Layout, Rule


def layout(context: Context) -> Layout:
    """Rules for the encoder and MAE's decoder."""
    context.require_backbone("vit")
    config, encoder, decoder = context.config, context.encoder, "params/decoder"
    rules, fixed = context.positions(
        "vit.embeddings.position_embeddings", encoder, config.model.width, config.model.class_token
    )
    hf_config = transformers_config("vit_mae", "ViTMAEModel", context)
    decoder_width, hidden = context.mask_token_width(decoder), f"{decoder}/stack/blocks/mlp/fc1/bias"
    if decoder_width and hidden in context.shapes:
        depth, mlp_width = context.shapes[hidden].shape
        hf_config |= dict(
            architectures=["ViTMAEForPreTraining"],
            decoder_hidden_size=decoder_width,
            decoder_num_hidden_layers=depth,
            decoder_num_attention_heads=config.decoder.heads,
            decoder_intermediate_size=mlp_width,
            **{key: config[key] for key in ("mask_ratio", "norm_pix_loss") if key in config},
        )
    decoder_rules, decoder_fixed = context.positions(
        "decoder.decoder_pos_embed", decoder, decoder_width, config.model.class_token
    )
    return Layout(
        rules=(
            *rules,
            *transformers_encoder("vit.", encoder, context),
            *linear("decoder.decoder_embed", f"{decoder}/embed"),
            Rule(("decoder.mask_token",), f"{decoder}/mask_token", axes.TOKEN),
            *decoder_rules,
            *transformers_blocks("decoder.decoder_layers", decoder),
            *norm("decoder.decoder_norm", f"{decoder}/norm"),
            *linear("decoder.decoder_pred", f"{decoder}/prediction"),
        ),
        fixed=(*fixed, *decoder_fixed),
        may_miss=(f"{encoder}/mask_token",),
        renames=(*TRANSFORMERS_RENAMES, (r"^(embeddings|encoder|layernorm)\.", r"vit.\1.")),
        config=hf_config,
        free_config=TRANSFORMERS_FREE,
    )
