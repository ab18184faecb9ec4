"""CroCo, ViT-B/16 on pairs of rendered views of the Habitat simulator (Weinzaepfel et al. 2022, arXiv 2210.10716).

    python -m mim_jax.train --config=configs/croco_vit_b16_habitat.py --workdir=runs/croco_vit_b16

`data.source` names a folder of pairs, `<name>_1.jpg` and `<name>_2.jpg` of 256x256 pixels, which the official code
renders from its released metadata: up to 1000 pairs for each scene, 1.8 million in all. The values are those of its
training command, which lays a cosine out over 800 epochs and stops it half way.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="croco")

    common.view_pairs(config, "pairs:data/habitat")

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0, position="sincos")
    config.decoder.update(width=512, depth=8, heads=16, mlp_ratio=4.0)

    config.mask_ratio = 0.9  # 176 of 196 patches
    config.norm_pix_loss = True

    # Biases and norms are exempt from weight decay; the mask token is not.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)
    config.optimizer.lr = 1.5e-4  # per 256 pairs
    config.optimizer.lr_reference_batch = 256

    config.schedule.update(name="cosine", warmup="40 epochs", start_lr=0.0, end_lr=0.0, length="800 epochs")

    config.batch_size = 256
    config.duration = "400 epochs"
    common.watch_pairs(config)
    return config
