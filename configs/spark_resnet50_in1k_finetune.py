"""Fine-tuning of SparK's ResNet-50 on ImageNet-1k for 300 epochs (Tian et al. 2023, arXiv 2301.03580).

    python -m mim_jax.train --config=configs/spark_resnet50_in1k_finetune.py --workdir=runs/spark_resnet50_finetune

Published top-1 at 224 px: 80.6 %; 82.2 % with a ResNet-101 (`:101`), 82.7 % with a 152, 83.1 % with a 200.
It starts from the run of configs/spark_resnet50_in1k.py; from the released weights with

    --config.init_from=resnet50_1kpretrained_timm_style.pth --config.init_layout=keyu-tian/SparK

The authors had ResNet-50 runs explode at this learning rate and advise a lower one then.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common
from mim_jax.models.resnet import resnet_size


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe for a ResNet of size `arg`: "50" (the default), "101", "152" or "200"."""
    size = arg or "50"
    config = mim_jax.default_config(task="classification", backbone="resnet")
    config.init_from = f"runs/spark_resnet{size}"
    config.init_parts = ("encoder",)

    common.imagenet(config, crop_scale=(0.08, 1.0), interpolation="bicubic", flip=True)
    config.data.trivial_augment = True
    config.data.random_erasing = 0.25
    config.data.eval_resize = 235  # 224 are 95 % of it
    config.num_classes = 1000
    config.label_smoothing = 0.1
    config.mixing.update(probability=1.0, mixup_alpha=0.1, cutmix_alpha=1.0, cutmix_share=0.5)
    config.loss = "binary_cross_entropy"
    config.head_init = "torch"

    config.image_size = 224
    config.model.update(**resnet_size(size), drop_path=0.05 if size == "50" else 0.2)

    config.batch_size = 2048
    config.duration = "300 epochs"
    config.optimizer.update(name="lamb", b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.02)
    config.optimizer.update(bias_correction=False, always_adapt=True, clip_norm=1e7)
    config.optimizer.no_decay = ("bias$", "scale$")
    config.optimizer.layer_decay = 0.7 if size == "50" else 0.8
    config.optimizer.lr = 2e-3 if size == "50" else 1e-3  # per 256 images: 1.6e-2
    config.optimizer.lr_reference_batch = 256
    # From 0.005 to 0.001 times the peak, which the last step has.
    config.schedule.update(name="cosine", warmup="5 epochs", reaches_end=True)
    config.schedule.update(start_lr=0.005 * config.optimizer.lr, end_lr=0.001 * config.optimizer.lr)
    config.ema_decay = 0.9999
    config.compute.dtype = "float32"  # as published; the authors advise against mixed precision

    common.watch_imagenet(config, ("accuracy",))
    config.checkpoint.every = "5 epochs"
    config.evaluation.every = "5 epochs"
    return config
