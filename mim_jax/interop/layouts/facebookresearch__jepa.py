"""Checkpoints of facebookresearch/jepa (V-JEPA): context encoder, predictor and EMA target encoder.

SALT takes all three, the target encoder as its frozen teacher. Any other objective takes the target encoder, which is
the one to use downstream; the variant "encoder" takes the context encoder instead.
"""

from __future__ import annotations

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS, linear, norm, patch_embed, timm_blocks
from mim_jax.interop.layout import Context, Fixed, Ignored, Layout, Rule
from mim_jax.layers.tubes import sincos_table_3d

VARIANTS = ("encoder",)
TUBE_CONVOLUTION = "o c t h w -> (t h w c) o"  # to a dense layer on tubes flattened with the channel fastest


def layout(context: Context) -> Layout:
    """Rules for both encoders and the predictor."""
    context.require_backbone("vit")
    config, predictor, teacher = context.config, "params/predictor", "teacher/teacher"
    ignored = ()
    if {"params/encoder", teacher} <= set(context.parts) and not context.is_task:
        encoders = {
            "encoder": ("params/encoder", config.model.width),
            "target_encoder": (teacher, config.teacher.width),
        }
    else:
        used, unused = ("encoder", "target_encoder") if context.variant else ("target_encoder", "encoder")
        encoders = {used: (context.encoder, config.model.width)}
        ignored = (Ignored(rf"^{unused}\.", f"only {used} is used here", quiet=False),)
    predictor_width = config.predictor.width if predictor in context.parts else 0
    rules, fixed = _positions("predictor.predictor_pos_embed", predictor, predictor_width, context)
    rules += [
        Rule(("predictor.mask_tokens.{i}",), f"{predictor}/mask_tokens", axes.TOKEN),
        *linear("predictor.predictor_embed", f"{predictor}/embed"),
        *timm_blocks("predictor.predictor_blocks", predictor),
        *norm("predictor.predictor_norm", f"{predictor}/norm"),
        *linear("predictor.predictor_proj", f"{predictor}/projection"),
    ]
    for name, (part, width) in encoders.items():
        more_rules, more_fixed = _positions(f"{name}.pos_embed", part, width, context)
        rules += [
            *more_rules,
            *_patch_embed(f"{name}.patch_embed.proj", part, context),
            *timm_blocks(f"{name}.blocks", part),
            *norm(f"{name}.norm", f"{part}/norm", may_drop=True),
        ]
        fixed += more_fixed
    return Layout(
        rules=tuple(rules),
        fixed=tuple(fixed),
        ignored=ignored,
        may_miss=tuple(f"{part}/{name}" for part, _ in encoders.values() for name in ("class_token", "mask_token")),
        containers=("encoder", "predictor", "target_encoder"),
        renames=(*WRAPPERS, (r"^(encoder|predictor|target_encoder)\.backbone\.", r"\1.")),
    )


def _of_clips(context: Context) -> bool:
    return context.config.get("num_frames", 1) > 1


def _positions(name: str, part: str, width: int, context: Context) -> tuple[list[Rule], list[Fixed]]:
    """As `Context.positions`; of clips the fixed table in three axes."""
    if not _of_clips(context):
        return context.positions(name, part, width, False)
    grid = (context.config.num_frames // context.config.model.tubelet_size, *context.grid)
    table = sincos_table_3d(grid, width)[None]
    return [], [Fixed(name, f"{part}/position/table", table, "change num_frames, image_size or their patches")]


def _patch_embed(name: str, part: str, context: Context) -> list[Rule]:
    """The convolution that embeds patches, of clips one in three axes."""
    if not _of_clips(context):
        return patch_embed(name, part, context)
    path, sizes = f"{part}/patch_embed/projection", {"t": context.config.model.tubelet_size, **context.patch_sizes}
    return [
        Rule((f"{name}.weight",), f"{path}/kernel", TUBE_CONVOLUTION, sizes),
        Rule((f"{name}.bias",), f"{path}/bias"),
    ]
