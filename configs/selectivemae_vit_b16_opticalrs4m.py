"""SelectiveMAE, ViT-B/16 on OpticalRS-4M for 800 epochs (Wang et al. 2025, arXiv 2406.11933).

    python -m mim_jax.train --config=configs/selectivemae_vit_b16_opticalrs4m.py --workdir=runs/selectivemae_vit_b16

The images of OpticalRS-4M are expected under `data/OpticalRS-4M`, in any nesting; their labels are not used. Published
accuracy of ViT-B after fine-tuning: AID 96.90 / 98.12 % (20 / 50 % of it for training), RESISC-45 93.35 / 94.58 %;
75.70 mAP50 on DIOR, 53.05 mIoU on LoveDA. The released training script and its README disagree on the decoder's depth
(8 and 12) and the warm-up (10 and 30 epochs); the script's are taken. InfoBatch, with which the script prunes its
epochs, is left out.
"""

from ml_collections import ConfigDict

import mim_jax


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="selectivemae")

    config.data.source = "folder:data/OpticalRS-4M"
    config.data.crop = "random_resized"
    config.data.crop_scale = (0.2, 1.0)
    config.data.crop_ratio = (3 / 4, 4 / 3)
    config.data.interpolation = "bicubic"
    config.data.flip = True

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0)
    config.decoder.update(width=512, depth=8, heads=16, mlp_ratio=4.0)

    config.mask_ratio = 0.85  # 29 of 196 patches are encoded
    config.kept_mask_ratio = 0.25  # another 49 are predicted
    config.norm_pix_loss = True
    config.score = "uniform"
    config.curriculum.update(far=300, random=600, mixing=20, epochs=800)

    # Biases and norms are exempt from weight decay; the class and mask tokens are not.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)
    # The official rate is also multiplied by the share of hidden patches that are predicted.
    config.optimizer.lr = 1.5e-4 * config.kept_mask_ratio / config.mask_ratio  # per 256 images: 3.529e-4
    config.optimizer.lr_reference_batch = 256

    config.schedule.update(name="cosine", warmup="10 epochs", start_lr=0.0, end_lr=0.0)

    config.batch_size = 2048
    config.duration = "800 epochs"
    config.log.every = "100 steps"
    config.checkpoint.every = "10 epochs"
    config.evaluation.every = "50 epochs"
    config.evaluation.tasks = ("reconstruct",)
    return config
