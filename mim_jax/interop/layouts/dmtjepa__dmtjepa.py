"""Checkpoints of DMTJEPA/DMTJEPA: those of facebookresearch/ijepa.

The official training does not save its head, and starts it anew when it resumes. Where a file has "head" and
"target_head" all the same, with the names of the official module, they are read.
"""

from __future__ import annotations

import dataclasses

from mim_jax.interop import axes
from mim_jax.interop.blocks import linear, norm
from mim_jax.interop.layout import Context, Ignored, Layout, Rule
from mim_jax.interop.layouts import facebookresearch__ijepa as ijepa

VARIANTS = ijepa.VARIANTS


def layout(context: Context) -> Layout:
    """I-JEPA's rules, and those of the head and its EMA copy."""
    base = ijepa.layout(context)
    if "teacher/head" not in context.parts:
        unused = Ignored(r"^(target_)?head\.", "the head has no use here", quiet=False)
        return dataclasses.replace(base, ignored=(*base.ignored, unused))
    return dataclasses.replace(
        base,
        rules=(*base.rules, *_head("head", "params/head"), *_head("target_head", "teacher/head")),
        containers=(*base.containers, "head", "target_head"),
    )


def _head(prefix: str, part: str) -> list[Rule]:
    name, path = f"{prefix}.cls_blocks.{{i}}", f"{part}/stack/blocks"
    projections = (("q", "query"), ("k", "key"), ("v", "value"))
    return [
        *norm(f"{name}.norm1", f"{path}/norm1"),
        *(
            Rule((f"{name}.attn.{theirs}.{kind}",), f"{path}/attention/{ours}/{leaf}", pattern)
            for theirs, ours in projections
            for kind, leaf, pattern in (("weight", "kernel", axes.HEADS), ("bias", "bias", axes.HEAD_BIAS))
        ),
        Rule((f"{name}.attn.proj.weight",), f"{path}/attention/out/kernel", axes.ATTENTION_OUT),
        Rule((f"{name}.attn.proj.bias",), f"{path}/attention/out/bias"),
        *norm(f"{name}.norm2", f"{path}/norm2"),
        *linear(f"{name}.mlp.fc1", f"{path}/mlp/fc1"),
        *linear(f"{name}.mlp.fc2", f"{path}/mlp/fc2"),
        *norm(f"{prefix}.norm", f"{part}/norm"),
    ]
