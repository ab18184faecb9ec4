"""FastConvMAE-B on ImageNet-1k for 50 epochs (Gao et al. 2022, arXiv 2205.03892; Alpha-VL/FastConvMAE).

    python -m mim_jax.train --config=configs/convmae_fast_conv_vit_b_in1k.py --workdir=runs/convmae_fast_conv_vit_b

Published ImageNet-1k top-1 at 224 px, fine-tuned: 84.4 %, as ConvMAE-B after 200 epochs. Batch and rates are those of
the official command; what is not said here is as for ConvMAE-B.
"""

from ml_collections import ConfigDict

from configs import convmae_conv_vit_b_in1k


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    config = convmae_conv_vit_b_in1k.get_config(arg)
    config.complementary = True  # four masks of each image, every patch visible in one of them
    config.optimizer.lr = 6e-4  # per 256 images: 1.2e-3
    config.schedule.warmup = "10 epochs"
    config.batch_size = 512
    config.duration = "50 epochs"
    config.evaluation.every = "5 epochs"
    return config
