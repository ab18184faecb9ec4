"""Pre-training checkpoints of OpenDriveLab/maskalign: student, alignment, and the whole frozen teacher.

The teacher is a model of transformers under `clip_model.` or `dino_model.`, unless it was stripped; then it comes from
the weights file that its section of the config names.
"""

from __future__ import annotations

from mim_jax.interop import axes
from mim_jax.interop.blocks import (
    WRAPPERS,
    classifier,
    linear,
    norm,
    patch_embed,
    timm_blocks,
    transformers_encoder,
)
from mim_jax.interop.layout import Context, Fixed, Ignored, Layout, Rule
from mim_jax.interop.teacher_blocks import transformers_clip_encoder

_CLIP, _DINO = "clip_model.vision_model.", "dino_model."
_UNTRAINED = "teacher/untrained"
# How transformers 5 calls in memory what files have; the student's own names stay as they are.
_RENAMES = (
    (r"^clip_model\.(?!vision_model\.)", _CLIP),
    (r"^dino_model\.layers\.", f"{_DINO}encoder.layer."),
    *(
        (rf"^(dino_model\..*\.attention)\.{new}\.", rf"\1.{old}.")
        for new, old in (
            ("q_proj", "attention.query"),
            ("k_proj", "attention.key"),
            ("v_proj", "attention.value"),
            ("o_proj", "output.dense"),
        )
    ),
    (r"^(dino_model\..*)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"^(dino_model\..*)\.mlp\.fc2\.", r"\1.output.dense."),
)


def layout(context: Context) -> Layout:
    """Rules for everything the official model holds; other objectives take the student's encoder."""
    context.require_backbone("vit")
    config, encoder = context.config, context.encoder
    pretraining = _UNTRAINED in context.parts
    rules, fixed = context.positions("pos_embed", encoder, config.model.width, config.model.class_token)
    rules += [
        Rule(("cls_token",), f"{encoder}/class_token", axes.TOKEN),
        *patch_embed("patch_embed.proj", encoder, context),
        *timm_blocks("blocks", encoder),
        *norm("norm", f"{_UNTRAINED if pretraining else encoder}/norm", may_drop=not pretraining),
    ]
    head, ignored = classifier("head", context)
    if pretraining:
        rules += _alignment(context)
        teacher_rules, teacher_fixed = _teacher(context)
        rules, fixed = rules + teacher_rules, fixed + teacher_fixed
        ignored = (
            *ignored,
            Ignored(r"^clip_model\..*position_ids$", "positions are counted here"),
            Ignored(r"^dino_model\.pooler\.", "the pooler belongs to no encoder here"),
        )
    else:
        ignored = (
            *ignored,
            Ignored(r"^distill_(heads|weights)", "the alignment with a teacher has no use here", quiet=False),
            Ignored(r"^(clip|dino)_model\.", "only the student is used here", quiet=False),
        )
    return Layout(
        rules=(*rules, *head, *norm("fc_norm", "params/norm")),
        fixed=tuple(fixed),
        ignored=ignored,
        may_miss=(f"{encoder}/mask_token",),
        renames=(*WRAPPERS, *_RENAMES),
    )


def _alignment(context: Context) -> list[Rule]:
    """The mixing matrix and all adapters, those of levels without weight among them."""
    rules = [Rule(("distill_weights",), "params/alignment/mixing")]
    for index in range(context.teachers["teacher"].encoder.depth):
        level = f"level{index + 1}"
        trained = any(path.startswith(f"params/alignment/{level}/") for path in context.shapes)
        path = f"params/alignment/{level}" if trained else f"{_UNTRAINED}/adapters/{level}"
        rules += _adapter(f"distill_heads.{index}", path, context.config.adapter)
    return rules


def _adapter(name: str, path: str, kind: str) -> list[Rule]:
    """One adapter; all but the plain one are PyTorch's `Sequential`, which counts a GELU too."""
    if kind == "linear":
        return linear(name, f"{path}/projection")
    if kind == "norm_linear":
        return [*norm(f"{name}.0", f"{path}/norm"), *linear(f"{name}.1", f"{path}/projection")]
    between = norm(f"{name}.1", f"{path}/norm") if kind == "mlp2" else []
    return [*linear(f"{name}.0", f"{path}/hidden"), *between, *linear(f"{name}.2", f"{path}/projection")]


def _teacher(context: Context) -> tuple[list[Rule], list[Fixed]]:
    own, part = context.of_teacher("teacher")
    kind = context.config.teacher.name.partition("_")[0]
    if kind == "clip":
        return transformers_clip_encoder(_CLIP, part, own), []
    if kind == "dino":
        model = own.config.model
        rules, fixed = own.positions(f"{_DINO}embeddings.position_embeddings", part, model.width, model.class_token)
        return [*rules, *transformers_encoder(_DINO, part, own)], fixed
    return [], []
