"""Checkpoints of HanxunH/LDReg's MAE: facebookresearch/mae's, beside an online classifier that only monitors.

The official pre-training has LayerNorms of epsilon 1e-5 (`model.norm_epsilon`), which a file does not tell.
"""

from __future__ import annotations

import dataclasses

from mim_jax.interop.layout import Context, Ignored, Layout
from mim_jax.interop.layouts import facebookresearch__mae as mae


def layout(context: Context) -> Layout:
    """MAE's rules; the classifier has no use here."""
    base = mae.layout(context)
    online = Ignored(r"^online_cls\.", "the online classifier only monitors")
    return dataclasses.replace(
        base,
        ignored=(*base.ignored, online),
        containers=("model_state_dict", *base.containers),
        renames=((r"^model_state_dict\.", ""), *base.renames),
    )
