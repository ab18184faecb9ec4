"""Self-distillation, ViT-B/16 on a small data set for 20,000 steps (Lee et al. 2023, arXiv 2210.02871).

    python -m mim_jax.train --config=configs/self_distill_further_pretrain_vit_b16_dtd.py --workdir=runs/self_dtd \\
        --config.init_from=facebook-vit-mae-base --config.init_layout=transformers/vit_mae \\
        --config.teacher.weights=runs/further_dtd

Textures (DTD) or, by an argument as in `..._dtd.py:flowers`, another of the paper's data sets: `flowers`, `dogs` or
`birds`. The teacher is a run of `mae_vit_b16_further_pretrain_dtd.py` with the same argument. The student starts where
that run started, from the directory of facebook/vit-mae-base, and not from the teacher; without `teacher.weights` the
run is refused.

All values are those of the official scripts; augmentation there is none. What it reaches after fine-tuning is not
known: the paper's numbers could not be confirmed.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `arg` names the data set."""
    config = mim_jax.default_config(method="self_distill_further_pretrain")
    common.further_pretraining(config, arg or "dtd")
    config.reconstruction_weight = 1.0
    config.distillation_weight = 1.0
    return config
