"""Fine-tuning of SimMIM's Swin-L on ImageNet-1k for 100 epochs at 224 px (Xie et al. 2022, arXiv 2111.09886).

    python -m mim_jax.train --config=configs/simmim_swin_l_in1k_finetune.py --workdir=runs/simmim_swin_l_finetune

Published top-1: 85.4 %. It starts from the run of configs/simmim_swin_l_in1k.py; all else is as for Swin-B, from 800
epochs of pre-training.
The tables of relative positions are resized from windows of 12 to windows of 14.
"""

from ml_collections import ConfigDict

from configs import simmim_swin_b_in1k_finetune
from mim_jax.models.swin import swin_size


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = simmim_swin_b_in1k_finetune.get_config("800")
    config.init_from = "runs/simmim_swin_l"
    config.model.update(**swin_size("L"), window=14, drop_path=0.2)
    config.optimizer.layer_decay = 0.7
    return config
