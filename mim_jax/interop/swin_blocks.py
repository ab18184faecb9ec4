"""Rules for Swin Transformers in the names of the official code and of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mim_jax.interop import axes
from mim_jax.interop.blocks import linear, norm, patch_embed
from mim_jax.interop.layout import Context, Ignored, Rule
from mim_jax.layers.relative_resize import resize_relative_table
from mim_jax.layers.window_attention import Windows

# Computed from the window and the image's size, which a model that is fine-tuned may have others of.
BUFFERS = Ignored(r"\.(relative_position_index|attn_mask)$", "a constant here")


def output_patch(context: Context) -> dict[str, int]:
    """Axes `h` and `w` of the pixels for which an output token stands."""
    stride = 2 ** (len(context.config.model.depths) - 1)
    return {axis: size * stride for axis, size in context.patch_sizes.items()}


def swin_encoder(prefix: str, part: str, context: Context) -> list[Rule]:
    """An encoder as the official code names it; `prefix` ends in a dot or is empty."""
    rules = [
        Rule((f"{prefix}mask_token",), f"{part}/mask_token", axes.TOKEN, may_drop=True),
        *patch_embed(f"{prefix}patch_embed.proj", part, context),
        *norm(f"{prefix}patch_embed.norm", f"{part}/patch_embed/norm"),
        *norm(f"{prefix}norm", f"{part}/norm", may_drop=True),
    ]
    return [*rules, *_stages(f"{prefix}layers", part, context, _official_block)]


def transformers_swin(prefix: str, part: str, context: Context) -> list[Rule]:
    """An encoder as transformers names it; `prefix` ends in a dot or is empty."""
    embeddings = f"{prefix}embeddings"
    rules = [
        Rule((f"{embeddings}.mask_token",), f"{part}/mask_token", axes.TOKEN, may_drop=True),
        *patch_embed(f"{embeddings}.patch_embeddings.projection", part, context),
        *norm(f"{embeddings}.norm", f"{part}/patch_embed/norm"),
        *norm(f"{prefix}layernorm", f"{part}/norm", may_drop=True),
    ]
    return [*rules, *_stages(f"{prefix}encoder.layers", part, context, _transformers_block)]


def _stages(name: str, part: str, context: Context, block: Callable[..., list[Rule]]) -> Iterator[Rule]:
    rows, columns = context.grid
    for stage in range(len(context.config.model.depths)):
        if stage:
            merge, path = f"{name}.{stage - 1}.downsample", f"{part}/stage{stage}/merge"
            yield from norm(f"{merge}.norm", f"{path}/norm")
            yield Rule((f"{merge}.reduction.weight",), f"{path}/reduction/kernel", axes.LINEAR)
            rows, columns = -(-rows // 2), -(-columns // 2)
        offsets = 2 * Windows.fit((rows, columns), context.config.model.window, shifted=False).side - 1
        for parity, first in (("even", 0), ("odd", 1)):
            path = f"{part}/stage{stage + 1}/stack/blocks/{parity}"
            yield from block(f"{name}.{stage}.blocks.{{i}}", path, (offsets, offsets), dict(first=first, every=2))


def _table(name: str, path: str, grid: tuple[int, int], flags: dict[str, Any]) -> Rule:
    return Rule((name,), f"{path}/relative_bias/table", grid=grid, resize=resize_relative_table, **flags)


def _official_block(name: str, path: str, grid: tuple[int, int], flags: dict[str, Any]) -> list[Rule]:
    return [
        *norm(f"{name}.norm1", f"{path}/norm1", **flags),
        _table(f"{name}.attn.relative_position_bias_table", path, grid, flags),
        Rule((f"{name}.attn.qkv.weight",), f"{path}/attention/qkv/kernel", axes.FUSED_QKV, **flags),
        Rule((f"{name}.attn.qkv.bias",), f"{path}/attention/qkv/bias", axes.FUSED_QKV_BIAS, **flags),
        Rule((f"{name}.attn.proj.weight",), f"{path}/attention/out/kernel", axes.ATTENTION_OUT, **flags),
        Rule((f"{name}.attn.proj.bias",), f"{path}/attention/out/bias", **flags),
        *norm(f"{name}.norm2", f"{path}/norm2", **flags),
        *linear(f"{name}.mlp.fc1", f"{path}/mlp/fc1", **flags),
        *linear(f"{name}.mlp.fc2", f"{path}/mlp/fc2", **flags),
    ]


def _transformers_block(name: str, path: str, grid: tuple[int, int], flags: dict[str, Any]) -> list[Rule]:
    projections = [f"{name}.attention.self.{which}" for which in ("query", "key", "value")]
    weights, biases = (tuple(f"{p}.{kind}" for p in projections) for kind in ("weight", "bias"))
    return [
        *norm(f"{name}.layernorm_before", f"{path}/norm1", **flags),
        _table(f"{name}.attention.self.relative_position_bias_table", path, grid, flags),
        Rule(weights, f"{path}/attention/qkv/kernel", axes.SPLIT_QKV, **flags),
        Rule(biases, f"{path}/attention/qkv/bias", axes.SPLIT_QKV_BIAS, **flags),
        Rule((f"{name}.attention.output.dense.weight",), f"{path}/attention/out/kernel", axes.ATTENTION_OUT, **flags),
        Rule((f"{name}.attention.output.dense.bias",), f"{path}/attention/out/bias", **flags),
        *norm(f"{name}.layernorm_after", f"{path}/norm2", **flags),
        *linear(f"{name}.intermediate.dense", f"{path}/mlp/fc1", **flags),
        *linear(f"{name}.output.dense", f"{path}/mlp/fc2", **flags),
    ]
