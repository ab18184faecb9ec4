"""Checkpoints of naver-ai/lut: MAE's, with projector ("head"), predictor and the EMA network.

No weights are public; the names are those of the code. Objectives without a projector take the student's encoder.
"""

from __future__ import annotations

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS, classifier, mae_decoder, timm_encoder
from mim_jax.interop.layout import Context, Ignored, Layout, Rule

TEACHER = "state_dict_ema"
# What the official training saves, and what it reads to resume.
_TEACHERS = ((rf"^(?:model_ema|{TEACHER})\.(?:module\.)?(?:ema\.)?(?:module\.)?", f"{TEACHER}."),)


def layout(context: Context) -> Layout:
    """Rules for student and teacher; of the official teacher, a copy of everything, only what is used."""
    context.require_backbone("vit")
    config, encoder, decoder = context.config, context.encoder, "params/decoder"
    pretraining = "params/projector" in context.parts
    decoder_width = context.mask_token_width(decoder)
    rules, fixed = context.positions("pos_embed", encoder, config.model.width, config.model.class_token)
    more_rules, more_fixed = context.positions("decoder_pos_embed", decoder, decoder_width, config.model.class_token)
    rules += [
        *more_rules,
        *timm_encoder("", encoder, context),
        *mae_decoder("", decoder),
    ]
    fixed += more_fixed
    if pretraining:
        teacher = "teacher/encoder"
        more_rules, more_fixed = context.positions(
            f"{TEACHER}.pos_embed", teacher, config.model.width, config.model.class_token
        )
        rules += [
            *more_rules,
            *timm_encoder(f"{TEACHER}.", teacher, context),
            *_head("head", "params/projector", "state/projector_statistics"),
            *_head("predictor", "params/predictor", "state/predictor_statistics"),
            *_head(f"{TEACHER}.head", "teacher/projector", "teacher/projector_statistics"),
        ]
        fixed += more_fixed
        unused = rf"^{TEACHER}\.(predictor\.|decoder_|mask_token$)"
        ignored = (
            Ignored(r"\.num_batches_tracked$", "the momentum of the statistics is constant"),
            Ignored(unused, "the teacher is an encoder and a projector"),
        )
    else:
        head, ignored = classifier("head", context)
        rules += head
        ignored = (
            Ignored(r"^(head|predictor)\.\d\.", "projector and predictor have no use here", quiet=False),
            *ignored,
            Ignored(rf"^{TEACHER}\.", "only the student is used here", quiet=False),
        )
    return Layout(
        rules=tuple(rules),
        fixed=tuple(fixed),
        ignored=ignored,
        may_miss=(f"{encoder}/mask_token",),
        containers=("model", "state_dict", TEACHER, "model_ema"),
        renames=(*_TEACHERS, *WRAPPERS),
    )


def _head(name: str, path: str, statistics: str) -> list[Rule]:
    return [
        Rule((f"{name}.0.weight",), f"{path}/fc1/kernel", axes.LINEAR),
        Rule((f"{name}.1.weight",), f"{path}/scale"),
        Rule((f"{name}.1.bias",), f"{path}/bias"),
        Rule((f"{name}.1.running_mean",), f"{statistics}/mean"),
        Rule((f"{name}.1.running_var",), f"{statistics}/variance"),
        Rule((f"{name}.3.weight",), f"{path}/fc2/kernel", axes.LINEAR),
    ]
