"""MFM, ResNet-50 on ImageNet-1k for 300 epochs (Xie et al. 2023, arXiv 2206.07706).

    python -m mim_jax.train --config=configs/mfm_resnet50_in1k.py --workdir=runs/mfm_resnet50

The argument selects one of the restoration tasks of section 3.3 instead, in the same recipe:
`configs/mfm_resnet50_in1k.py:denoise` (or `super_resolution`, `deblur`).

Published ImageNet-1k top-1 at 224 px, fine-tuned for 100 epochs: 78.5 % (super-resolution 77.9 %, deblurring 78.0 %,
denoising 77.5 %), for 300 epochs 80.1 %, both by timm's "ResNet strikes back" recipes.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; the argument is a corruption, "frequency" unless it is given."""
    config = mim_jax.default_config(method="mfm", backbone="resnet")

    common.imagenet(config, crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True)

    config.image_size = 224
    config.model.update(depths=(3, 4, 6, 3), widths=(64, 128, 256, 512), stem="imagenet")

    config.corruption = arg or "frequency"
    # Unlike a ViT's, most of its images are high-pass ones.
    config.frequency.update(radius=16.0, low_pass_probability=0.3)
    config.super_resolution.factor = 8
    config.deblur.sigma = 5.0
    config.denoise.sigma = 75.0

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05, clip_norm=3.0)
    config.optimizer.no_decay = ("bias$", "scale$")
    config.optimizer.lr = 3e-4  # per 512 images: 1.2e-3
    config.optimizer.lr_reference_batch = 512

    config.schedule.update(name="cosine", warmup="20 epochs", start_lr=2.5e-7, end_lr=2.5e-6)
    config.schedule.update(cosine_includes_warmup=True, offset=-1)  # see mfm_vit_b16_in1k.py

    config.batch_size = 2048
    config.duration = "300 epochs"
    common.watch_imagenet(config, tasks=("knn", "reconstruct"))
    return config
