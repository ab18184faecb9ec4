"""G2SD's specific distillation, ViT-S/16 from a fine-tuned ViT-B/16 on ImageNet-1k for 200 epochs (Huang et al. 2023).

    python -m mim_jax.train --config=configs/g2sd_vit_s16_in1k_distillation.py --workdir=runs/g2sd_vit_s16_distilled

It starts from the run of `configs/g2sd_vit_s16_in1k.py`, runs/g2sd_vit_s16 (else `--config.init_from=RUN`), and its
teacher is that of `configs/mae_vit_b16_in1k_finetune.py`, runs/mae_vit_b16_finetune (else
`--config.teacher.weights=RUN`); from released weights with

    --config.init_from=g2sd_small.pth --config.init_layout=pengzhiliang/g2sd
    --config.teacher.weights=mae_finetuned_vit_base.pth

Published top-1: 98.7 % of the teacher's 83.6 %. The paper is arXiv 2302.14771; the values are those of the official
script.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(task="distillation")
    config.init_from = "runs/g2sd_vit_s16"
    config.init_parts = ("encoder",)
    config.teacher.update(name="mae_vit_b16_finetuned", weights="runs/mae_vit_b16_finetune")

    common.imagenet(config, crop_scale=(0.08, 1.0), interpolation="bicubic", flip=True)
    config.data.rand_augment = "rand-m9-mstd0.5-inc1"
    config.data.random_erasing = 0.25
    config.num_classes = 1000
    config.label_smoothing = 0.1
    config.mixing.update(probability=1.0, mixup_alpha=0.8, cutmix_alpha=1.0, cutmix_share=0.5)

    config.image_size = 224
    config.model.update(patch_size=16, width=384, depth=12, heads=6, mlp_ratio=4.0)
    config.model.update(pool="class", position="sincos_learned", drop_path=0.0)

    config.batch_size = 1024
    config.duration = "200 epochs"
    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05, layer_decay=0.75)
    # The distillation token is the encoder's register; it has the whole learning rate.
    config.optimizer.no_decay = ("bias$", "scale$", "position/table$", "class_token$", "registers$")
    config.optimizer.clip_norm = None
    config.optimizer.lr = 1e-3  # per 256 images: 4e-3
    config.optimizer.lr_reference_batch = 256
    # The schedule's rates are per 256 images too; the official minimum of 1e-6 is absolute.
    config.schedule.update(name="cosine", warmup="5 epochs", start_lr=0.0, end_lr=1e-6 * 256 / 1024)

    common.watch_imagenet(config, ("accuracy",))
    config.checkpoint.every = "5 epochs"
    config.evaluation.every = "5 epochs"
    return config
