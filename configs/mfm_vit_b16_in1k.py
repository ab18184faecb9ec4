"""MFM, ViT-B/16 on ImageNet-1k for 300 epochs (Xie et al. 2023, arXiv 2206.07706).

    python -m mim_jax.train --config=configs/mfm_vit_b16_in1k.py --workdir=runs/mfm_vit_b16

The argument selects one of the restoration tasks of section 3.3 instead, in the same recipe:
`configs/mfm_vit_b16_in1k.py:denoise` (or `super_resolution`, `deblur`).

Published ImageNet-1k top-1 at 224 px, fine-tuned for 100 epochs: 83.1 % (super-resolution 82.4 %, deblurring 81.7 %,
denoising 82.7 %); there is no linear probe. All values are those of the official configuration.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; the argument is a corruption, "frequency" unless it is given."""
    config = mim_jax.default_config(method="mfm")

    common.imagenet(config, crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True)

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0)
    config.model.update(position="learned", qkv_bias="qv")

    config.corruption = arg or "frequency"
    # Half of the images keep the 793 lowest of 50,176 frequencies, the others all but these.
    config.frequency.update(radius=16.0, low_pass_probability=0.5)
    config.super_resolution.factor = 8
    config.deblur.sigma = 5.0
    config.denoise.sigma = 75.0

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05, clip_norm=3.0)
    config.optimizer.no_decay = ("bias$", "scale$", "position/table$", "class_token$")
    config.optimizer.lr = 3e-4  # per 512 images: 1.2e-3
    config.optimizer.lr_reference_batch = 512

    # The cosine counts from the start of training, so that the rate after the warm-up is 98.9 % of the peak; and the
    # official scheduler moves after the optimiser, so that the first two steps have the same rate.
    config.schedule.update(name="cosine", warmup="20 epochs", start_lr=2.5e-7, end_lr=2.5e-6)
    config.schedule.update(cosine_includes_warmup=True, offset=-1)

    config.batch_size = 2048
    config.duration = "300 epochs"
    common.watch_imagenet(config, tasks=("knn", "reconstruct"))
    return config
