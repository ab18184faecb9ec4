"""Linear probe of MAE's ViT-B/16 on ImageNet-1k for 90 epochs (He et al. 2022, arXiv 2111.06377, appendix A.1).

    python -m mim_jax.train --config=configs/mae_vit_b16_in1k_linear.py --workdir=runs/mae_vit_b16_linear

Published top-1: 67.8 % (official PyTorch code; 68.0 % in the paper).
It starts from the run of configs/mae_vit_b16_in1k.py; from the released weights with

    --config.init_from=mae_pretrain_vit_base.pth --config.init_layout=facebookresearch/mae

Two things differ from the official code: BatchNorm statistics are those of the global batch, not of 512 images per GPU,
and a random crop that does not fit is drawn again, not clamped to the image.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(task="linear_probe")
    config.init_from = "runs/mae_vit_b16"
    config.init_parts = ("encoder",)

    common.imagenet(config, crop_scale=(0.08, 1.0), interpolation="bicubic", flip=True)
    config.num_classes = 1000

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0)
    config.model.update(pool="class", position="sincos", drop_path=0.0)

    config.batch_size = 16384
    config.duration = "90 epochs"
    config.optimizer.update(name="lars", momentum=0.9, trust_coefficient=0.001, weight_decay=0.0)
    config.optimizer.no_decay = ("bias$",)  # for LARS also: no trust ratio
    config.optimizer.lr = 0.1  # per 256 images: 6.4
    config.optimizer.lr_reference_batch = 256
    config.schedule.update(name="cosine", warmup="10 epochs", start_lr=0.0, end_lr=0.0)

    common.watch_imagenet(config, ("accuracy",))
    config.checkpoint.every = "5 epochs"
    config.evaluation.every = "5 epochs"
    return config
