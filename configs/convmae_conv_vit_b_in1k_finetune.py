"""Fine-tuning of ConvMAE-B on ImageNet-1k for 100 epochs (Gao et al. 2022, arXiv 2205.03892; Alpha-VL/ConvMAE).

    python -m mim_jax.train --config=configs/convmae_conv_vit_b_in1k_finetune.py --workdir=runs/convmae_b_finetune

Published top-1: 85.0 % (84.982 in the official log) after 1600 epochs of pre-training, 84.4 % after 200.
It starts from the run of configs/convmae_conv_vit_b_in1k.py, without its fusion of scales; from released weights with

    --config.init_from=convmae_base.pth --config.init_layout=Alpha-VL/ConvMAE

For layer decay everything before the transformer's blocks is layer 0.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(task="classification", backbone="conv_vit")
    config.init_from = "runs/convmae_conv_vit_b"
    config.init_parts = ("encoder",)

    common.imagenet(config, crop_scale=(0.08, 1.0), interpolation="bicubic", flip=True)
    config.data.rand_augment = "rand-m9-mstd0.5-inc1"
    config.data.random_erasing = 0.25
    config.num_classes = 1000
    config.label_smoothing = 0.1
    config.mixing.update(probability=1.0, mixup_alpha=0.8, cutmix_alpha=1.0, cutmix_share=0.5)

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=11, heads=12, mlp_ratio=4.0)
    config.model.stages.update(widths=(256, 384), depths=(2, 2), mlp_ratios=(4.0, 4.0))
    config.model.update(pool="mean", position="sincos_learned", drop_path=0.1)

    config.batch_size = 1024
    config.duration = "100 epochs"
    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05, layer_decay=0.65)
    config.optimizer.no_decay = ("bias$", "scale$", "position/table$")
    config.optimizer.clip_norm = None
    config.optimizer.lr = 5e-4  # per 256 images: 2e-3
    config.optimizer.lr_reference_batch = 256
    # The schedule's rates are per 256 images too; the official minimum of 1e-6 is absolute.
    config.schedule.update(name="cosine", warmup="5 epochs", start_lr=0.0, end_lr=1e-6 * 256 / 1024)
    config.ema_decay = None

    common.watch_imagenet(config, ("accuracy",))
    config.checkpoint.every = "5 epochs"
    config.evaluation.every = "5 epochs"
    return config
