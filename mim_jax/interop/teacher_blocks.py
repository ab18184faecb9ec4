"""Rules for the public encoders that others learn from, whose blocks have names of their own."""

from __future__ import annotations

from typing import Any

from mim_jax.interop import axes
from mim_jax.interop.blocks import linear, norm, patch_embed, timm_encoder
from mim_jax.interop.layout import Context, Fused, Ignored, Rule
from mim_jax.layers.position import Resize

# What scales DINO's position tables: the factor is a tenth of a patch too large, against rounding.
DINO_RESIZE = Resize(offset=0.1)
SMOOTH_RESIZE = Resize(antialias=True)

# CLIP's other half.
CLIP_TEXT = Ignored(
    r"^(transformer\.|text_model\.|token_embedding\.|positional_embedding$|ln_final\.|text_projection|logit_scale$"
    r"|input_resolution$|context_length$|vocab_size$)",
    "the text encoder belongs to no encoder here",
)


# Keys of config.json that may differ: of what the weights mean they say nothing.
TEACHER_FREE = ("architectures", "image_size", "model_type")


def transformers_teacher_config(model_type: str, architecture: str, context: Context, **more: Any) -> dict[str, Any]:
    """`config.json` of a public ViT; keys whose values must agree for the weights to mean the same."""
    config, model = context.config, context.config.model
    return dict(
        model_type=model_type,
        architectures=[architecture],
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        layer_norm_eps=model.norm_epsilon,
        image_size=config.image_size,
        patch_size=model.patch_size,
        num_channels=config.channels,
        **more,
    )


def clip_encoder(prefix: str, part: str, context: Context) -> list[Rule]:
    """CLIP's image encoder under OpenAI's names, without its projection; `prefix` ends in a dot or is empty."""
    name, path = f"{prefix}transformer.resblocks.{{i}}", f"{part}/stack/blocks"
    return [
        *patch_embed(f"{prefix}conv1", part, context),
        Rule((f"{prefix}class_embedding",), f"{part}/class_token"),
        Rule((f"{prefix}positional_embedding",), f"{part}/position/table", grid=context.grid),
        *norm(f"{prefix}ln_pre", f"{part}/pre_norm"),
        *norm(f"{name}.ln_1", f"{path}/norm1"),
        Rule((f"{name}.attn.in_proj_weight",), f"{path}/attention/qkv/kernel", axes.FUSED_QKV),
        Rule((f"{name}.attn.in_proj_bias",), f"{path}/attention/qkv/bias", axes.FUSED_QKV_BIAS),
        Rule((f"{name}.attn.out_proj.weight",), f"{path}/attention/out/kernel", axes.ATTENTION_OUT),
        Rule((f"{name}.attn.out_proj.bias",), f"{path}/attention/out/bias"),
        *norm(f"{name}.ln_2", f"{path}/norm2"),
        *linear(f"{name}.mlp.c_fc", f"{path}/mlp/fc1"),
        *linear(f"{name}.mlp.c_proj", f"{path}/mlp/fc2"),
        *norm(f"{prefix}ln_post", f"{part}/norm", may_drop=True),
    ]


def transformers_clip_encoder(prefix: str, part: str, context: Context) -> list[Rule]:
    """CLIP's image encoder under the names of transformers; `prefix` ends in a dot or is empty."""
    name, path = f"{prefix}encoder.layers.{{i}}", f"{part}/stack/blocks"
    projections = [f"{name}.self_attn.{which}_proj" for which in "qkv"]
    return [
        *patch_embed(f"{prefix}embeddings.patch_embedding", part, context),
        Rule((f"{prefix}embeddings.class_embedding",), f"{part}/class_token"),
        Rule((f"{prefix}embeddings.position_embedding.weight",), f"{part}/position/table", grid=context.grid),
        *norm(f"{prefix}pre_layrnorm", f"{part}/pre_norm"),
        *norm(f"{name}.layer_norm1", f"{path}/norm1"),
        Rule(tuple(f"{p}.weight" for p in projections), f"{path}/attention/qkv/kernel", axes.SPLIT_QKV),
        Rule(tuple(f"{p}.bias" for p in projections), f"{path}/attention/qkv/bias", axes.SPLIT_QKV_BIAS),
        Rule((f"{name}.self_attn.out_proj.weight",), f"{path}/attention/out/kernel", axes.ATTENTION_OUT),
        Rule((f"{name}.self_attn.out_proj.bias",), f"{path}/attention/out/bias"),
        *norm(f"{name}.layer_norm2", f"{path}/norm2"),
        *linear(f"{name}.mlp.fc1", f"{path}/mlp/fc1"),
        *linear(f"{name}.mlp.fc2", f"{path}/mlp/fc2"),
        *norm(f"{prefix}post_layernorm", f"{part}/norm", may_drop=True),
    ]


def dino_encoder(prefix: str, part: str, context: Context, resize: Resize | None = DINO_RESIZE) -> list[Rule]:
    """The ViT of DINO, iBOT and DINOv2 (timm's names, and their own for registers and SwiGLU), with its positions."""
    path = f"{part}/stack/blocks/mlp"
    position = Rule((f"{prefix}pos_embed",), f"{part}/position/table", axes.POSITIONS, grid=context.grid, resize=resize)
    rules = [position, Rule((f"{prefix}register_tokens",), f"{part}/registers", axes.POSITIONS)]
    encoder = timm_encoder(prefix, part, context)
    if context.config.model.activation == "swiglu":
        encoder = [rule for rule in encoder if not rule.path.startswith(path)]
        encoder += [
            *linear(f"{prefix}blocks.{{i}}.mlp.w12", f"{path}/fc1"),
            *linear(f"{prefix}blocks.{{i}}.mlp.w3", f"{path}/fc2"),
        ]
    return rules + encoder


# In files the gated MLP's first layer is one tensor; transformers 5 has two in memory.
TRANSFORMERS_GATED = tuple(
    Fused(
        f"encoder.layer.{{i}}.mlp.weights_in.{kind}",
        tuple(f"encoder.layer.{{i}}.mlp.{half}_proj.{kind}" for half in ("gate", "up")),
    )
    for kind in ("weight", "bias")
)


def transformers_dinov2_encoder(prefix: str, part: str, context: Context, resize: Resize | None) -> list[Rule]:
    """DINOv2 under the names of transformers; `prefix` ends in a dot or is empty."""
    name, path = f"{prefix}encoder.layer.{{i}}", f"{part}/stack/blocks"
    projections = [f"{name}.attention.attention.{which}" for which in ("query", "key", "value")]
    position = f"{prefix}embeddings.position_embeddings"
    mlp = [*linear(f"{name}.mlp.fc1", f"{path}/mlp/fc1"), *linear(f"{name}.mlp.fc2", f"{path}/mlp/fc2")]
    if context.config.model.activation == "swiglu":
        halves = [f"{name}.mlp.{which}_proj" for which in ("gate", "up")]
        mlp = [
            Rule(tuple(f"{half}.weight" for half in halves), f"{path}/mlp/fc1/kernel", "t o i -> i (t o)", dict(t=2)),
            Rule(tuple(f"{half}.bias" for half in halves), f"{path}/mlp/fc1/bias", "t o -> (t o)", dict(t=2)),
            *linear(f"{name}.mlp.down_proj", f"{path}/mlp/fc2"),
        ]
    return [
        Rule((f"{prefix}embeddings.cls_token",), f"{part}/class_token", axes.TOKEN),
        Rule((f"{prefix}embeddings.register_tokens",), f"{part}/registers", axes.POSITIONS),
        Rule((position,), f"{part}/position/table", axes.POSITIONS, grid=context.grid, resize=resize),
        *patch_embed(f"{prefix}embeddings.patch_embeddings.projection", part, context),
        *norm(f"{name}.norm1", f"{path}/norm1"),
        Rule(tuple(f"{p}.weight" for p in projections), f"{path}/attention/qkv/kernel", axes.SPLIT_QKV),
        Rule(tuple(f"{p}.bias" for p in projections), f"{path}/attention/qkv/bias", axes.SPLIT_QKV_BIAS),
        Rule((f"{name}.attention.output.dense.weight",), f"{path}/attention/out/kernel", axes.ATTENTION_OUT),
        Rule((f"{name}.attention.output.dense.bias",), f"{path}/attention/out/bias"),
        Rule((f"{name}.layer_scale1.lambda1",), f"{path}/gamma1"),
        *norm(f"{name}.norm2", f"{path}/norm2"),
        *mlp,
        Rule((f"{name}.layer_scale2.lambda1",), f"{path}/gamma2"),
        *norm(f"{prefix}layernorm", f"{part}/norm", may_drop=True),
    ]
