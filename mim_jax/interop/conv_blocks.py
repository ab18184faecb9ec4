"""Rules for ConvMAE's hybrid encoder, which several official repositories share."""

from __future__ import annotations

from mim_jax.interop import axes
from mim_jax.interop.blocks import linear, norm, timm_blocks
from mim_jax.interop.layout import Context, Rule

_POINTWISE = "o i 1 1 -> i o"
_DEPTHWISE = "d 1 h w -> h w 1 d"


def _convolution(name: str, path: str, window: tuple[int, int], **flags) -> list[Rule]:
    """A convolution whose stride is its size."""
    sizes = {"h": window[0], "w": window[1]}
    return [
        Rule((f"{name}.weight",), f"{path}/kernel", axes.PATCH_CONVOLUTION, sizes, **flags),
        Rule((f"{name}.bias",), f"{path}/bias", **flags),
    ]


def _pointwise(name: str, path: str) -> list[Rule]:
    return [Rule((f"{name}.weight",), f"{path}/kernel", _POINTWISE), Rule((f"{name}.bias",), f"{path}/bias")]


def _stage(prefix: str, path: str) -> list[Rule]:
    name = f"{prefix}.{{i}}"
    return [
        *norm(f"{name}.norm1", f"{path}/norm1"),
        *_pointwise(f"{name}.conv1", f"{path}/conv1"),
        # The official code calls the depthwise convolution "attn", since it stands where attention would.
        Rule((f"{name}.attn.weight",), f"{path}/depthwise/kernel", _DEPTHWISE),
        Rule((f"{name}.attn.bias",), f"{path}/depthwise/bias"),
        *_pointwise(f"{name}.conv2", f"{path}/conv2"),
        *norm(f"{name}.norm2", f"{path}/norm2"),
        *_pointwise(f"{name}.mlp.fc1", f"{path}/mlp/fc1"),
        *_pointwise(f"{name}.mlp.fc2", f"{path}/mlp/fc2"),
    ]


def conv_vit_encoder(part: str, context: Context) -> list[Rule]:
    """A hybrid encoder without its positions."""
    patch, stem = context.patch_sizes, f"{part}/stem"
    embeddings = ((patch["h"] // 4, patch["w"] // 4), (2, 2), (2, 2))
    rules = []
    for number, window in enumerate(embeddings, 1):
        rules += _convolution(f"patch_embed{number}.proj", f"{stem}/embed{number}/projection", window)
        rules += norm(f"patch_embed{number}.norm", f"{stem}/embed{number}/norm")
    for number, side in ((1, 4), (2, 2)):
        rules += _stage(f"blocks{number}", f"{stem}/stage{number}/blocks")
        # Downstream models do without the side outputs.
        rules += _convolution(f"stage{number}_output_decode", f"{stem}/fuse{number}", (side, side), may_drop=True)
    return [
        *rules,
        *linear("patch_embed4", f"{stem}/embed4"),
        *timm_blocks("blocks3", part),
        *norm("norm", f"{part}/norm", may_drop=True),
    ]
