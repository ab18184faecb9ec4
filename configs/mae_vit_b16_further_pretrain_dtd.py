"""MAE, ViT-B/16, from public weights for 20,000 steps on a small data set (Lee et al. 2023, arXiv 2210.02871).

    python -m mim_jax.train --config=configs/mae_vit_b16_further_pretrain_dtd.py --workdir=runs/further_dtd \\
        --config.init_from=facebook-vit-mae-base --config.init_layout=transformers/vit_mae

Textures (DTD) or, by an argument as in `..._dtd.py:flowers`, `flowers`, `dogs` or `birds`. The run is the teacher of
`self_distill_further_pretrain_vit_b16_dtd.py`, and its baseline: the longer it is, the paper finds, the lower the
accuracy after fine-tuning. The decoder of facebook/vit-mae-base was, as far as is known, trained on plain pixels, so
that with normalised ones the loss starts high. All values are those of the official scripts.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `arg` names the data set."""
    config = mim_jax.default_config(method="mae")
    common.further_pretraining(config, arg or "dtd")
    return config
