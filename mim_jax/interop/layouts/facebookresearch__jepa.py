"""Checkpoints of facebookresearch/jepa (V-JEPA): context encoder, predictor and EMA target encoder.

SALT takes all three, the target encoder (or one called "teacher") as its frozen teacher. Its first stage, which has
none, takes the context encoder, and the predictor as its decoder. Any other objective takes the target encoder, which
is the one to use downstream; the variant "encoder" takes the context encoder instead.
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
    width, predictor, teacher = context.config.model.width, _predictor(context), "teacher/teacher"
    if predictor is not None and teacher in context.parts:
        encoders = {"encoder": ("params/encoder", width), "target_encoder": (teacher, context.config.teacher.width)}
        unused = []
    else:
        used = "encoder" if predictor is not None or context.variant else "target_encoder"
        encoders = {used: (context.encoder, width)}
        unused = [("target_encoder" if used == "encoder" else "encoder", f"only {used} is used here")]
    if predictor is None:
        rules, fixed = [], []
        unused.append(("predictor", "this objective has no predictor"))
    else:
        rules, fixed = _predictor_rules(predictor, context)
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
        ignored=tuple(Ignored(rf"^{name}\.", reason, quiet=False) for name, reason in unused),
        may_miss=tuple(f"{part}/{name}" for part, _ in encoders.values() for name in ("class_token", "mask_token")),
        containers=("encoder", "predictor", "target_encoder", "teacher"),
        renames=(
            *WRAPPERS,
            (r"^teacher\.", "target_encoder."),
            (r"^(encoder|predictor|target_encoder)\.backbone\.", r"\1."),
        ),
    )


def _predictor(context: Context) -> str | None:
    """The part that is a predictor of V-JEPA's kind: SALT's, or the decoder of its first stage."""
    return next((part for part in context.parts if f"{part}/mask_tokens" in context.shapes), None)


def _predictor_rules(part: str, context: Context) -> tuple[list[Rule], list[Fixed]]:
    rules, fixed = _positions("predictor.predictor_pos_embed", part, context.mask_token_width(part), context)
    rules += [
        Rule(("predictor.mask_tokens.{i}",), f"{part}/mask_tokens", axes.TOKEN),
        *linear("predictor.predictor_embed", f"{part}/embed"),
        *timm_blocks("predictor.predictor_blocks", part),
        *norm("predictor.predictor_norm", f"{part}/norm"),
        *linear("predictor.predictor_proj", f"{part}/projection"),
    ]
    return rules, fixed


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
