"""MR-MAE, ViT-B/16 on ImageNet-1k for 200 epochs (Gao et al. 2023, arXiv 2303.05475).

    python -m mim_jax.train --config=configs/mr_mae_vit_b16_in1k.py --workdir=runs/mr_mae_vit_b16 \\
        --config.teacher.weights=ViT-B-16.safetensors

The teacher is OpenAI's CLIP ViT-B/16: the state_dict of the archive, or, with
`--config.teacher.layout=transformers/clip`, a file of transformers. DINO is `teacher.name=dino_vit_b16`; both together
are CLIP as the teacher and `second_teacher.name=dino_vit_b16`. Published ImageNet-1k top-1 at 224 px, fine-tuned:
85.0 % (the 85.8 % of the abstract are the hybrid encoder's: `configs/mr_mae_conv_vit_b_in1k.py`).

No code is public. Known are the share of visible patches, the teachers and the number of epochs; all else is ConvMAE's.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="mr_mae")

    common.imagenet(config, crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True)

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0)
    config.decoder.update(width=512, depth=8, heads=16, mlp_ratio=4.0)
    config.teacher.name = "clip_vit_b16"

    config.mask_ratio = 0.75
    config.focus = "random"
    config.mimic_weight = 1.0
    config.target_norm = "whiten"
    config.norm_pix_loss = True

    # Biases and norms are exempt from weight decay; the class and mask tokens are not.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)
    config.optimizer.lr = 1.5e-4  # per 256 images: 1.8e-3
    config.optimizer.lr_reference_batch = 256

    config.schedule.update(name="cosine", warmup="40 epochs", start_lr=0.0, end_lr=0.0)

    config.batch_size = 3072
    config.duration = "200 epochs"
    common.watch_imagenet(config, tasks=("knn", "reconstruct"))
    return config
