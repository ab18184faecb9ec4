"""Checkpoints of naver/unic: the student, its heads and the statistics of the teachers' features.

The official code reads the teachers from files of their own; here they may stand beside the rest as
`{"teachers": {"dino": {...}}}`, under timm's names, as those files have them.
"""

from __future__ import annotations

import numpy as np

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS, norm, patch_embed, timm_blocks, timm_encoder
from mim_jax.interop.layout import Context, Fixed, Ignored, Layout, Rule

# Of class token and patches: the name there, and the axes of their statistics.
_KINDS = {"class": ("cls", "1 d -> d"), "patch": ("patch", axes.TOKEN)}
# What the official code calls the teachers; others have one name.
_OFFICIAL = {
    "dbot": "dbotft_vitbase_16",
    "deit3": "deit3_vitbase_16",
    "dino": "dino_vitbase_16",
    "ibot": "ibot_vitbase_16",
}
_RENAMES = (
    *WRAPPERS,
    (r"^(teachers\.\w+)\.(?:model|state_dict)\.", r"\1."),
    *((rf"^(lp\.heads|teacher_ft_stats|teachers)\.{ours}\.", rf"\1.{name}.") for ours, name in _OFFICIAL.items()),
    # DINOv2's blocks come in chunks, here a single one; without chunks there is no such number.
    (r"^encoder\.blocks\.(?:\d+\.)?(\d+)\.", r"encoder.blocks.0.\1."),
    (r"^(teachers\.\w+)\.fc_norm\.", r"\1.norm."),  # a single norm, where a teacher pools its patches
    (r"^(teachers\..+)\.gamma_([12])$", r"\1.ls\2.gamma"),
)


def layout(context: Context) -> Layout:
    """Rules for UNIC itself, and for the encoder of any objective."""
    context.require_backbone("vit")
    model, encoder = context.config.model, context.encoder
    rules, fixed = context.positions("encoder.pos_embed", encoder, model.width, model.class_token)
    rules += [
        Rule(("encoder.cls_token",), f"{encoder}/class_token", axes.TOKEN),
        Rule(("encoder.register_tokens",), f"{encoder}/registers", axes.POSITIONS),
        *patch_embed("encoder.patch_embed.proj", encoder, context),
        *timm_blocks("encoder.blocks.0", encoder),
    ]
    if "params/ladder" in context.parts:
        constants = {"norm.weight": np.ones(model.width), "norm.bias": np.zeros(model.width)}
        constants["mask_token"] = np.zeros((1, model.width))
        fixed += [
            Fixed(
                f"encoder.{name}", f"{encoder}/{name}", value.astype(np.float32), "the distillation does not train it"
            )
            for name, value in constants.items()
        ]
        names = "|".join(_official(name) for name in context.teachers)
        more = [rule for name in context.teachers for rule in _heads(name, context)]
        for name in context.teachers:
            teacher_rules, teacher_fixed = _teacher(name, context)
            more += teacher_rules
            fixed += teacher_fixed
        other = rf"^(lp\.heads|teacher_ft_stats|teachers)\.(?!(?:{names})\.)"
        ignored = (
            Ignored(other, "of a teacher that is not in config.teachers", quiet=False),
            Ignored(r"^teachers\.\w+\.(head|head_dist|mask_token)(\.|$)", "a teacher's features come before its head"),
        )
    else:
        more = norm("encoder.norm", f"{encoder}/norm", may_drop=True)
        ignored = (
            Ignored(r"^(lp|teacher_ft_stats|teachers)\.", "what distilled the encoder has no use downstream"),
            Ignored(r"^encoder\.mask_token$", "it was never used, and is zero"),
        )
    return Layout(
        rules=(*rules, *more),
        fixed=tuple(fixed),
        ignored=ignored,
        may_miss=(f"{encoder}/mask_token",),
        containers=("model", "state_dict", "teacher_ft_stats", "teachers"),
        renames=_RENAMES,
    )


def _official(teacher: str) -> str:
    return _OFFICIAL.get(teacher, teacher)


def _heads(teacher: str, context: Context) -> list[Rule]:
    """The heads on all blocks for one teacher, the last block's apart, and the statistics of its features."""
    last, rules = context.config.model.depth - 1, []
    for kind, (official, moments) in _KINDS.items():
        name, path = f"lp.heads.{_official(teacher)}.{official}", f"params/ladder/{teacher}_{kind}"
        statistics = f"teacher_ft_stats.{_official(teacher)}.{official}"
        for layer, ours in (("layers.0", "fc1"), ("layers.2", "fc2")):
            rules += [
                Rule((f"{name}.{{i}}.{layer}.weight",), f"{path}/blocks/mlp/{ours}/kernel", axes.LINEAR),
                Rule((f"{name}.{{i}}.{layer}.bias",), f"{path}/blocks/mlp/{ours}/bias"),
                Rule((f"{name}.{last}.{layer}.weight",), f"{path}/last/mlp/{ours}/kernel", "o i -> 1 i o"),
                Rule((f"{name}.{last}.{layer}.bias",), f"{path}/last/mlp/{ours}/bias", "o -> 1 o"),
            ]
        rules += [
            Rule((f"{statistics}.{key}",), f"state/statistics/{teacher}/{kind}/{key}", moments)
            for key in ("mean", "std")
        ]
    return rules


def _teacher(name: str, context: Context) -> tuple[list[Rule], list[Fixed]]:
    """A frozen teacher beside the rest."""
    own, part = context.of_teacher(name)
    model, prefix = own.config.model, f"teachers.{_official(name)}."
    rules, fixed = own.positions(f"{prefix}pos_embed", part, model.width, model.class_token and model.class_position)
    registers = Rule((f"{prefix}register_tokens",), f"{part}/registers", axes.POSITIONS)
    return [*rules, registers, *timm_encoder(prefix, part, own)], fixed
