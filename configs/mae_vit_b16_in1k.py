"""MAE, ViT-B/16 on ImageNet-1k for 1600 epochs (He et al. 2022, arXiv 2111.06377, appendix A.1).

    python -m mim_jax.train --config=configs/mae_vit_b16_in1k.py --workdir=runs/mae_vit_b16

Published ImageNet-1k top-1 at 224 px: 83.6 % fine-tuned, 67.8 % by linear probe (the official code's; the paper's
own run: 68.0 %). Optimiser, crops and mask ratio are the paper's; normalised pixels and 1600 epochs are those of the
released checkpoints (the paper's ablations: 800 epochs, raw pixels); eps and what is exempt from weight decay are read
from the official code.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="mae")

    common.imagenet(config, crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True)

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0)
    config.decoder.update(width=512, depth=8, heads=16, mlp_ratio=4.0)

    config.mask_ratio = 0.75
    config.norm_pix_loss = True

    # Biases and norms are exempt from weight decay; the class and mask tokens are not.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)
    config.optimizer.lr = 1.5e-4  # per 256 images: 2.4e-3
    config.optimizer.lr_reference_batch = 256

    config.schedule.update(name="cosine", warmup="40 epochs", start_lr=0.0, end_lr=0.0)

    config.batch_size = 4096
    config.duration = "1600 epochs"
    common.watch_imagenet(config, tasks=("knn", "reconstruct"))
    return config
