"""CRATE-MAE-S/16 on ImageNet-1k for 800 epochs (Pai et al. 2024, arXiv 2404.02446).

    python -m mim_jax.train --config=configs/crate_mae_s16_in1k.py --workdir=runs/crate_mae_s16

Published: fine-tuned 96.2 % on CIFAR-10 and 79.0 % on CIFAR-100, 71.7 % on Flowers, 73.7 % on Pets. The recipe is that
of the Base size; the model has 25.4 million parameters and is half as wide again as a ViT-S.
"""

from ml_collections import ConfigDict

from configs import crate_mae_b16_in1k


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    config = crate_mae_b16_in1k.get_config(arg)
    config.model.update(width=576, depth=12, heads=12)
    return config
