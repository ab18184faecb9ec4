"""Fine-tuning of SimMIM's Swin-B on ImageNet-1k for 100 epochs at 224 px (Xie et al. 2022, arXiv 2111.09886).

    python -m mim_jax.train --config=configs/simmim_swin_b_in1k_finetune.py --workdir=runs/simmim_swin_b_finetune

Published top-1: 83.5 % from 100 epochs of pre-training at 192 px, 84.0 % from 800 (`:800`).
It starts from the run of configs/simmim_swin_b_in1k.py; from the released weights with

    --config.init_from=simmim_pretrain__swin_base__img192_window6__100ep.pth --config.init_layout=microsoft/SimMIM

The tables of relative positions are resized from windows of 6 to windows of 7.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common
from mim_jax.errors import ConfigError
from mim_jax.models.swin import swin_size

_LAYER_DECAY = {"100": 0.9, "800": 0.8}  # by epochs of pre-training


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe for a model pre-trained for `arg` epochs, "100" (the default) or "800"."""
    epochs = arg or "100"
    if epochs not in _LAYER_DECAY:
        raise ConfigError(f"There is no recipe for {epochs!r} epochs of pre-training; choose '100' or '800'.")
    config = mim_jax.default_config(task="classification", backbone="swin")
    config.init_from = "runs/simmim_swin_b"
    config.init_parts = ("encoder",)

    common.imagenet(config, crop_scale=(0.08, 1.0), interpolation="bicubic", flip=True)
    config.data.rand_augment = "rand-m9-mstd0.5-inc1"
    config.data.random_erasing = 0.25
    config.num_classes = 1000
    config.label_smoothing = 0.1
    config.mixing.update(probability=1.0, mixup_alpha=0.8, cutmix_alpha=1.0, cutmix_share=0.5)
    config.head_init = "normal"

    config.image_size = 224
    config.model.update(patch_size=4, **swin_size("B"), window=7, mlp_ratio=4.0, drop_path=0.1)

    config.batch_size = 2048
    config.duration = "100 epochs"
    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05, clip_norm=5.0)
    config.optimizer.layer_decay = _LAYER_DECAY[epochs]
    # Here, unlike in pre-training, the tables of relative positions are exempt.
    config.optimizer.no_decay = ("bias$", "scale$", "relative_bias/table$")
    config.optimizer.lr = 1.25e-3  # per 512 images: 5e-3
    config.optimizer.lr_reference_batch = 512
    config.schedule.update(name="cosine", warmup="20 epochs", start_lr=2.5e-7, end_lr=2.5e-7)
    config.schedule.update(cosine_includes_warmup=True, offset=-1)  # as in pre-training
    config.ema_decay = None

    common.watch_imagenet(config, ("accuracy",))
    config.checkpoint.every = "5 epochs"
    config.evaluation.every = "5 epochs"
    return config
