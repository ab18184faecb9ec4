"""SimMIM, ViT-B/16 on ImageNet-1k for 800 epochs (Xie et al. 2022, arXiv 2111.09886).

    python -m mim_jax.train --config=configs/simmim_vit_b16_in1k.py --workdir=runs/simmim_vit_b16

Published ImageNet-1k top-1 at 224 px: 83.8 % fine-tuned, 56.7 % by linear probe. All values are those of the official
configuration that gave the released checkpoint; the paper's text has another learning rate and schedule for ViT.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="simmim")

    common.imagenet(config, crop_scale=(0.67, 1.0), interpolation="bilinear", flip=True)

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0)
    # BEiT's block: one relative position bias for all layers, no absolute positions, no key bias, layer scale.
    config.model.update(position="none", relative_bias=True, qkv_bias="qv", layer_scale=0.1, drop_path=0.1)

    config.mask_ratio = 0.6
    config.mask_patch_size = 32

    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05, clip_norm=5.0)
    # The class token is exempt from weight decay; the mask token and the relative position table are not.
    config.optimizer.no_decay = ("bias$", "scale$", r"gamma\d$", "class_token$")
    config.optimizer.lr = 1e-4  # per 512 images: 4e-4
    config.optimizer.lr_reference_batch = 512

    config.schedule.update(name="step", warmup="10 epochs", start_lr=5e-7, milestones=("700 epochs",), gamma=0.1)
    # The official scheduler moves after the optimiser, so that the first two steps have the same rate.
    config.schedule.offset = -1

    config.batch_size = 2048
    config.duration = "800 epochs"
    common.watch_imagenet(config, tasks=("knn", "reconstruct"))
    return config
