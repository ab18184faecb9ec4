"""Checkpoints of Jiahao000/MFM with a ViT or a ResNet: pre-training, the encoder alone, fine-tuning."""

from __future__ import annotations

from mim_jax.errors import WeightsError
from mim_jax.interop.blocks import WRAPPERS, classifier, norm, pixel_shuffle_head, timm_encoder
from mim_jax.interop.cnn_blocks import COUNTERS, resnet_encoder
from mim_jax.interop.layout import Context, Layout
from mim_jax.models.resnet import STEMS

_PREFIX = "encoder."
_OTHERS = r"encoder\.|decoder\.|head\.|fc\.|fc_norm\."


def layout(context: Context) -> Layout:
    """Rules for the encoder, and for the pixel head or a classifier; the restoration tasks' are the same."""
    backbone = context.config.model.backbone
    if backbone not in ("vit", "resnet"):
        raise WeightsError(f"This weights layout is for model.backbone='vit' or 'resnet', not {backbone!r}.")
    # Fine-tuned models have no prefix; of those that were pre-trained the official code strips it.
    prefix = "" if context.is_task else _PREFIX
    rename = (rf"^{_PREFIX}", "") if context.is_task else (rf"^(?!{_OTHERS})", _PREFIX)
    renames = (*WRAPPERS, rename)
    return _vit(prefix, renames, context) if backbone == "vit" else _resnet(prefix, renames, context)


def _vit(prefix: str, renames: tuple[tuple[str, str], ...], context: Context) -> Layout:
    model, encoder = context.config.model, context.encoder
    rules, fixed = context.positions(f"{prefix}pos_embed", encoder, model.width, model.class_token, optional=True)
    pixels, no_pixels = pixel_shuffle_head("decoder.0", context)
    classes, no_classes = classifier("head", context)
    return Layout(
        rules=(
            *rules,
            *timm_encoder(prefix, encoder, context),
            *pixels,
            *norm("fc_norm", "params/norm"),
            *classes,
        ),
        fixed=tuple(fixed),
        ignored=(*no_pixels, *no_classes),
        may_miss=(f"{encoder}/mask_token",),
        renames=renames,
    )


def _resnet(prefix: str, renames: tuple[tuple[str, str], ...], context: Context) -> Layout:
    stride = STEMS[context.config.model.stem] * 2 ** (len(context.config.model.depths) - 1)
    pixels, no_pixels = pixel_shuffle_head("decoder.0", context, {"h": stride, "w": stride})
    classes, no_classes = classifier("fc", context)
    return Layout(
        rules=(*resnet_encoder(prefix, context.encoder, context), *pixels, *classes),
        ignored=(*no_pixels, *no_classes, COUNTERS),
        renames=renames,
    )
