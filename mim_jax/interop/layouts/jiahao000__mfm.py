"""Pre-training checkpoints of Jiahao000/MFM with a ViT or a ResNet."""

from __future__ import annotations

from mim_jax.errors import WeightsError
from mim_jax.interop.blocks import WRAPPERS, pixel_shuffle_head, timm_encoder
from mim_jax.interop.cnn_blocks import COUNTERS, resnet_encoder
from mim_jax.interop.layout import Context, Layout
from mim_jax.models.resnet import STEMS


def layout(context: Context) -> Layout:
    """Rules for the encoder and for the pixel head; the restoration tasks' are the same."""
    backbone = context.config.model.backbone
    if backbone not in ("vit", "resnet"):
        raise WeightsError(f"This weights layout is for model.backbone='vit' or 'resnet', not {backbone!r}.")
    return _vit(context) if backbone == "vit" else _resnet(context)


def _vit(context: Context) -> Layout:
    model, encoder = context.config.model, context.encoder
    rules, fixed = context.positions("encoder.pos_embed", encoder, model.width, model.class_token, optional=True)
    head, ignored = pixel_shuffle_head("decoder.0", context)
    return Layout(
        rules=(*rules, *timm_encoder("encoder.", encoder, context), *head),
        fixed=tuple(fixed),
        ignored=ignored,
        may_miss=(f"{encoder}/mask_token",),
        renames=WRAPPERS,
    )


def _resnet(context: Context) -> Layout:
    stride = STEMS[context.config.model.stem] * 2 ** (len(context.config.model.depths) - 1)
    head, ignored = pixel_shuffle_head("decoder.0", context, {"h": stride, "w": stride})
    return Layout(
        rules=(*resnet_encoder("encoder.", context.encoder, context), *head),
        ignored=(*ignored, COUNTERS),
        renames=WRAPPERS,
    )
