"""UNIC, ViT-B/16 from four teachers on ImageNet-1k for 200 epochs (Sariyildiz et al. 2024, arXiv 2408.05088).

    python -m mim_jax.train --config=configs/unic_vit_b16_in1k.py --workdir=runs/unic_vit_b16 \\
        --config.teachers.dino.weights=DINO.pth --config.teachers.ibot.weights=IBOT.pth \\
        --config.teachers.deit3.weights=DEIT3_1K.pth --config.teachers.dbot.weights=DBOT_FINETUNED.pth

The files are those the official repositories publish for ViT-B/16: DeiT-III's is trained on ImageNet-1k alone, dBOT's
fine-tuned on it. Published ImageNet-1k top-1 of a linear classifier: 83.8 %; ADE20K with a linear head: 39.6 mIoU. All
values are those of the official code, which differs as `mim_jax/methods/unic.py` says, and in its blur: a kernel of
nine taps with sigma up to 5, whose standard deviation reaches 2.4 pixels, where this one's reaches 2. It computes in
float16, this in bfloat16.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="unic")

    common.imagenet(config, crop_scale=(0.08, 1.0), interpolation="bicubic", flip=True)
    config.data.update(color_jitter=(0.4, 0.4, 0.2, 0.1), color_jitter_probability=0.8)
    config.data.update(grayscale=0.2, blur=0.2, solarize=0.2)

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0, drop_path=0.1)
    config.ladder.update(hidden_ratio=1.0, last_hidden_ratio=4.0)

    config.cosine_weight = 0.5
    config.smooth_l1_weight = 0.5
    config.teacher_drop = 0.5
    config.statistics_momentum = 1.0
    config.statistics_end_momentum = 0.001

    config.optimizer.update(name="adamw", b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.03)
    config.optimizer.update(lr=3e-4, lr_reference_batch=256)

    config.batch_size = 512
    config.duration = "200 epochs"
    # The lowest rate is 1e-6 whatever the batch, while `end_lr` scales with it as `lr` does.
    config.schedule.update(name="cosine", warmup="10 epochs", start_lr=0.0, end_lr=1e-6 * 256 / 512)
    config.schedule.warmup_reaches_peak = True
    common.watch_imagenet(config, tasks=("knn",))
    return config
