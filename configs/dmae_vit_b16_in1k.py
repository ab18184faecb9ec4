"""DMAE, ViT-B/16 from ViT-L/16 on ImageNet-1k for 100 epochs (Bai et al. 2023, arXiv 2208.12256).

    python -m mim_jax.train --config=configs/dmae_vit_b16_in1k.py --workdir=runs/dmae_vit_b16 \\
        --config.teacher.weights=mae_visualize_vit_large.pth

Published ImageNet-1k top-1, fine-tuned for 100 epochs: 84.0 %; with `--config.mask_ratio=0.95` 83.6 %, at 0.98 82.4 %.
The teacher is MAE's ViT-L/16, of whatever file: its decoder is not needed. A run of `configs/mae_vit_l16_in1k.py` does
as well. The values are those of the released script (raw pixels, a warm-up of 20 epochs).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="dmae")

    common.imagenet(config, crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True)

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0)
    config.decoder.update(width=512, depth=8, heads=16, mlp_ratio=4.0)
    config.teacher.name = "mae_vit_l16"

    config.mask_ratio = 0.75
    config.norm_pix_loss = False

    # After the student's 9th of 12 blocks and the teacher's 18th of 24.
    config.alignment.update(student_blocks=(8,), teacher_blocks=(17,), head="linear", loss="l1", weight=1.0)

    # Biases and norms are exempt from weight decay; the class and mask tokens are not.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)
    config.optimizer.lr = 1.5e-4  # per 256 images: 2.4e-3
    config.optimizer.lr_reference_batch = 256

    config.schedule.update(name="cosine", warmup="20 epochs", start_lr=0.0, end_lr=0.0)

    config.batch_size = 4096
    config.duration = "100 epochs"
    common.watch_imagenet(config, tasks=("knn", "reconstruct"))
    return config
