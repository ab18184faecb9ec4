"""CRATE-MAE-B/16 on ImageNet-1k for 800 epochs (Pai et al. 2024, arXiv 2404.02446).

    python -m mim_jax.train --config=configs/crate_mae_b16_in1k.py --workdir=runs/crate_mae_b16

Published: fine-tuned 96.8 % on CIFAR-10 and 80.3 % on CIFAR-100, 78.5 % on Flowers, 76.7 % on Pets; there is no number
for ImageNet-1k. The official code has the model alone and refers to MAE's for training. Rate, batch, epochs and warm-up
are the paper's, quoted from memory and not confirmed; everything else is MAE's, but pixels are not normalised.

44.6 million parameters, 31 % of a ViT-MAE of this width. Yet a forward pass takes 11.4 billion multiplications an image
where that of configs/mae_vit_b16_in1k.py takes 9.7: encoder and decoder both process all 197 tokens.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="crate_mae")

    common.imagenet(config, crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True)

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12)
    config.model.update(step_size=0.1, threshold=0.5)
    config.decoder.update(depth=12, heads=12)

    config.mask_ratio = 0.75
    config.norm_pix_loss = False

    # Biases and norms are exempt from weight decay; the class and mask tokens and the dictionaries are not.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)
    config.optimizer.lr = 3e-5  # per 256 images: 4.8e-4
    config.optimizer.lr_reference_batch = 256

    config.schedule.update(name="cosine", warmup="40 epochs", start_lr=0.0, end_lr=0.0)

    config.batch_size = 4096
    config.duration = "800 epochs"
    common.watch_imagenet(config, tasks=("knn", "reconstruct", "coding_rate"))
    return config
