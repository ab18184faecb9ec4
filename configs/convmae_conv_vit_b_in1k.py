"""ConvMAE-B on ImageNet-1k for 1600 epochs (Gao et al. 2022, arXiv 2205.03892; Alpha-VL/ConvMAE).

    python -m mim_jax.train --config=configs/convmae_conv_vit_b_in1k.py --workdir=runs/convmae_conv_vit_b

Published ImageNet-1k top-1 at 224 px: 85.0 % fine-tuned, 70.9 % by linear probe; 84.4 % fine-tuned after 200 epochs.
The batch is that of the official command; an author gives 2048 for the paper's run.

About a quarter of the encoder's multiplications are in its four convolution blocks, which compute visible positions
alone. The official fp16 runs met NaN after 1000 epochs; bfloat16 has float32's range.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="convmae")

    common.imagenet(config, crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True)

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=11, heads=12, mlp_ratio=4.0)
    config.model.stages.update(widths=(256, 384), depths=(2, 2), mlp_ratios=(4.0, 4.0))
    config.decoder.update(width=512, depth=8, heads=16, mlp_ratio=4.0)

    config.mask_ratio = 0.75
    config.norm_pix_loss = True

    # Biases and norms are exempt from weight decay; the mask token is not.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)
    config.optimizer.lr = 1.5e-4  # per 256 images: 1.8e-3
    config.optimizer.lr_reference_batch = 256

    config.schedule.update(name="cosine", warmup="40 epochs", start_lr=0.0, end_lr=0.0)

    config.batch_size = 3072
    config.duration = "1600 epochs"
    common.watch_imagenet(config, tasks=("knn", "reconstruct"))
    return config
