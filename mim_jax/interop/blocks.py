"""Rules for parts that many layouts share: transformer blocks, dense layers and norms, in two dialects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mim_jax.interop import axes
from mim_jax.interop.layout import Context, Ignored, Rule

# What training checkpoints have in every name: the key of a flattened container, a parallel or a compiled wrapper.
WRAPPERS = ((r"^(model|state_dict)\.", ""), (r"(^|\.)(?:(?:module|_orig_mod)\.)+", r"\1"))


def linear(name: str, path: str, **flags) -> list[Rule]:
    """A Linear layer; see `Rule` for `flags`."""
    return [
        Rule((f"{name}.weight",), f"{path}/kernel", axes.LINEAR, **flags),
        Rule((f"{name}.bias",), f"{path}/bias", **flags),
    ]


def norm(name: str, path: str, **flags) -> list[Rule]:
    """A LayerNorm; see `Rule` for `flags`."""
    return [Rule((f"{name}.weight",), f"{path}/scale", **flags), Rule((f"{name}.bias",), f"{path}/bias", **flags)]


def patch_embed(name: str, part: str, context: Context) -> list[Rule]:
    """The convolution of stride and size `p` that embeds patches."""
    path = f"{part}/patch_embed/projection"
    return [
        Rule((f"{name}.weight",), f"{path}/kernel", axes.PATCH_CONVOLUTION, context.patch_sizes),
        Rule((f"{name}.bias",), f"{path}/bias"),
    ]


def pixel_shuffle_head(
    name: str, context: Context, sizes: Mapping[str, int] | None = None
) -> tuple[list[Rule], tuple[Ignored, ...]]:
    """SimMIM's head, a 1x1 convolution before a PixelShuffle; ignored by tasks, whose head is another one.

    `sizes` are the axes `h` and `w` of what an output token stands for, where that is no patch.
    """
    if context.is_task:
        return [], (Ignored(rf"^{re.escape(name)}\.", "the pixel head has no use downstream", quiet=False),)
    return [
        Rule((f"{name}.weight",), "params/head/kernel", axes.PIXEL_SHUFFLE, sizes or context.patch_sizes),
        Rule((f"{name}.bias",), "params/head/bias", axes.PIXEL_SHUFFLE_BIAS, sizes or context.patch_sizes),
    ], ()


def classifier(name: str, context: Context) -> tuple[list[Rule], tuple[Ignored, ...]]:
    """A linear classifier; ignored by pre-training methods, whose head is another one."""
    if not context.is_task:
        return [], (Ignored(rf"^{re.escape(name)}\.", "a classifier has no use in pre-training", quiet=False),)
    return linear(name, "params/head"), ()


def timm_blocks(
    prefix: str, part: str, gammas: tuple[str, str] = ("ls1.gamma", "ls2.gamma"), stack: str = "stack"
) -> list[Rule]:
    """Blocks as timm and everything that grew from it names them: `blocks.0.attn.qkv.weight`.

    `gammas` are the names of the two layer scales, which only some of them have; `stack` is that of the blocks here.
    """
    name, path = f"{prefix}.{{i}}", f"{part}/{stack}/blocks"
    return [
        *norm(f"{name}.norm1", f"{path}/norm1"),
        Rule((f"{name}.attn.qkv.weight",), f"{path}/attention/qkv/kernel", axes.FUSED_QKV),
        Rule((f"{name}.attn.qkv.bias",), f"{path}/attention/qkv/bias", axes.FUSED_QKV_BIAS),
        Rule((f"{name}.attn.q_bias",), f"{path}/attention/query_bias", axes.HEAD_BIAS),
        Rule((f"{name}.attn.v_bias",), f"{path}/attention/value_bias", axes.HEAD_BIAS),
        Rule((f"{name}.attn.proj.weight",), f"{path}/attention/out/kernel", axes.ATTENTION_OUT),
        Rule((f"{name}.attn.proj.bias",), f"{path}/attention/out/bias"),
        Rule((f"{name}.{gammas[0]}",), f"{path}/gamma1"),
        *norm(f"{name}.norm2", f"{path}/norm2"),
        *linear(f"{name}.mlp.fc1", f"{path}/mlp/fc1"),
        *linear(f"{name}.mlp.fc2", f"{path}/mlp/fc2"),
        Rule((f"{name}.{gammas[1]}",), f"{path}/gamma2"),
    ]


def timm_encoder(prefix: str, part: str, context: Context, **names) -> list[Rule]:
    """A ViT as timm names it, without positions and mask token.

    `prefix` ends in a dot or is empty; `names` go to `timm_blocks`.
    """
    return [
        Rule((f"{prefix}cls_token",), f"{part}/class_token", axes.TOKEN),
        *patch_embed(f"{prefix}patch_embed.proj", part, context),
        *timm_blocks(f"{prefix}blocks", part, **names),
        *norm(f"{prefix}norm", f"{part}/norm", may_drop=True),
    ]


# transformers 5 renamed the modules of its ViTs; files on the hub, and those it still writes, have the names of 4.
TRANSFORMERS_RENAMES = (
    *WRAPPERS,
    (r"(^|\.)layers\.", r"\1encoder.layer."),
    (r"\bdecoder_encoder\.layer\.", "decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


# Keys of config.json that do not change what the weights mean, or not more than a note is worth.
TRANSFORMERS_FREE = (
    "architectures",
    "attention_probs_dropout_prob",
    "hidden_dropout_prob",
    "image_size",
    "layer_norm_eps",
    "mask_ratio",
    "norm_pix_loss",
)


def mae_decoder(prefix: str, part: str) -> list[Rule]:
    """MAE's decoder under the names of the official code, without its positions."""
    return [
        *linear(f"{prefix}decoder_embed", f"{part}/embed"),
        Rule((f"{prefix}mask_token",), f"{part}/mask_token", axes.TOKEN),
        *timm_blocks(f"{prefix}decoder_blocks", part),
        *norm(f"{prefix}decoder_norm", f"{part}/norm"),
        *linear(f"{prefix}decoder_pred", f"{part}/prediction"),
    ]


def transformers_blocks(prefix: str, part: str) -> list[Rule]:
    """Blocks as transformers names them: `encoder.layer.0.attention.attention.query.weight`."""
    name, path = f"{prefix}.{{i}}", f"{part}/stack/blocks"
    projections = [f"{name}.attention.attention.{which}" for which in ("query", "key", "value")]
    return [
        *norm(f"{name}.layernorm_before", f"{path}/norm1"),
        Rule(tuple(f"{p}.weight" for p in projections), f"{path}/attention/qkv/kernel", axes.SPLIT_QKV),
        Rule(tuple(f"{p}.bias" for p in projections), f"{path}/attention/qkv/bias", axes.SPLIT_QKV_BIAS),
        Rule((f"{name}.attention.output.dense.weight",), f"{path}/attention/out/kernel", axes.ATTENTION_OUT),
        Rule((f"{name}.attention.output.dense.bias",), f"{path}/attention/out/bias"),
        *norm(f"{name}.layernorm_after", f"{path}/norm2"),
        *linear(f"{name}.intermediate.dense", f"{path}/mlp/fc1"),
        *linear(f"{name}.output.dense", f"{path}/mlp/fc2"),
    ]


def transformers_encoder(prefix: str, part: str, context: Context) -> list[Rule]:
    """A ViT as transformers names it, without its positions; `prefix` ends in a dot or is empty."""
    return [
        Rule((f"{prefix}embeddings.cls_token",), f"{part}/class_token", axes.TOKEN),
        Rule((f"{prefix}embeddings.mask_token",), f"{part}/mask_token", axes.TOKEN, may_drop=True),
        *patch_embed(f"{prefix}embeddings.patch_embeddings.projection", part, context),
        *transformers_blocks(f"{prefix}encoder.layer", part),
        *norm(f"{prefix}layernorm", f"{part}/norm", may_drop=True),
    ]


def transformers_config(model_type: str, architecture: str, context: Context) -> dict[str, Any]:
    """`config.json` of a ViT-like model; keys whose values must agree for the weights to mean the same."""
    config, model = context.config, context.config.model

    def number_or_list(size: Any) -> Any:
        return size if isinstance(size, int) else list(size)

    return dict(
        model_type=model_type,
        architectures=[architecture],
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        intermediate_size=int(model.width * model.mlp_ratio + 0.5),
        hidden_act=model.activation,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=model.norm_epsilon,
        image_size=number_or_list(config.image_size),
        patch_size=number_or_list(model.patch_size),
        num_channels=config.channels,
        qkv_bias=model.qkv_bias == "all",
    )
