"""Checkpoints of pengzhiliang/G2SD: of generic distillation, and the classifiers of specific distillation.

The official code loads the teacher of either stage, an MAE, from another file; its tensors are known by the prefix
"teacher.". Pixel heads and the norms before them are in the files, and nothing ever trains them.
"""

from __future__ import annotations

import dataclasses

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS, classifier, linear, mae_decoder, norm, timm_encoder
from mim_jax.interop.layout import Context, Fixed, Ignored, Layout, Rule

_HEADS = {"decoderfeature_pred": "params/decoder_head", "encoderfeature_pred": "params/encoder_head"}


def layout(context: Context) -> Layout:
    """Rules for the student, with the decoder and the heads it has, and for the teacher."""
    context.require_backbone("vit")
    config, encoder, decoder = context.config, context.encoder, "params/decoder"
    width = context.mask_token_width(decoder)
    rules, fixed = context.positions("pos_embed", encoder, config.model.width, config.model.class_token)
    more, more_fixed = context.positions("decoder_pos_embed", decoder, width, config.model.class_token)
    head, ignored = classifier("head", context)
    rules += [
        *more,
        *timm_encoder("", encoder, context),
        # It has no position, so a checkpoint of DeiT's, which has one, is another (facebookresearch/deit:distilled).
        Rule(("dist_token",), f"{encoder}/registers", axes.POSITIONS, may_drop=True),
        *mae_decoder("", decoder),
        *norm("fc_norm", "params/norm"),
        *head,
    ]
    ignored = (*ignored, Ignored(r"^decoder_(norm|pred)\.", "nothing trains the pixel head"))
    for name, path in _HEADS.items():
        if path in context.parts:
            rules += [*linear(f"{name}.fc1", f"{path}/fc1"), *linear(f"{name}.fc2", f"{path}/fc2")]
        else:
            ignored += (Ignored(rf"^{name}\.", "this objective has no such term"),)
    if "params/distillation_head" in context.parts:
        rules += linear("head_dist", "params/distillation_head")
    else:
        ignored += (Ignored(r"^head_dist\.", "this objective has no distillation head", quiet=False),)
    if "teacher" in context.teachers:
        more, more_teacher, unused = _teacher(context)
        rules, fixed = rules + more, fixed + more_teacher
    else:
        unused = Ignored(r"^teacher\.", "the teacher has no use here")
    return Layout(
        rules=tuple(rules),
        fixed=(*fixed, *more_fixed),
        ignored=(*ignored, unused),
        # The distillation token begins with the second stage.
        may_miss=(f"{encoder}/mask_token", f"{encoder}/registers"),
        containers=("model", "state_dict", "teacher"),
        renames=WRAPPERS,
    )


def _teacher(context: Context) -> tuple[list[Rule], list[Fixed], Ignored]:
    """An MAE with its decoder, or one fine-tuned as a classifier."""
    theirs, part = context.of_teacher("teacher")
    encoder, decoder, config = f"{part}/encoder", f"{part}/decoder", theirs.config
    theirs = dataclasses.replace(theirs, encoder_part=encoder)
    rules, fixed = theirs.positions("teacher.pos_embed", encoder, config.model.width, config.model.class_token)
    rules += timm_encoder("teacher.", encoder, theirs)
    if context.is_task:
        rules += [*norm("teacher.fc_norm", f"{part}/norm"), *linear("teacher.head", f"{part}/head")]
        return rules, fixed, Ignored(r"^teacher\.(decoder_|mask_token$)", "a classifier has no decoder")
    more, more_fixed = theirs.positions(
        "teacher.decoder_pos_embed", decoder, theirs.mask_token_width(decoder), config.model.class_token
    )
    rules += [*more, *mae_decoder("teacher.", decoder)]
    return (
        rules,
        fixed + more_fixed,
        Ignored(r"^teacher\.decoder_(norm|pred)\.", "the teacher's pixels are not asked for"),
    )
