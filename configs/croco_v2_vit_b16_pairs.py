"""CroCo v2, ViT-B/16 with the base decoder on pairs of real and rendered views (Weinzaepfel et al. 2023).

    python -m mim_jax.train --config=configs/croco_v2_vit_b16_pairs.py --workdir=runs/croco_v2_vit_b16

arXiv 2211.10408. `data.source` names a folder of pairs, `<name>_1.jpg` and `<name>_2.jpg` of 256x256 pixels: Habitat,
ARKitScenes, MegaDepth, 3DStreetView and IndoorVL side by side, as the official repository prepares them. The values are
those of its training command (4 GPUs with 64 pairs each), which lays a cosine out over 250 epochs and stops it half
way; the paper, which had more pairs than could be released, has 200, 100 and a warm-up of 10.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="croco")

    common.view_pairs(config, "pairs:data/croco_v2")

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0, position="rope")
    config.decoder.update(width=768, depth=12, heads=12, mlp_ratio=4.0)

    config.mask_ratio = 0.9  # 176 of 196 patches
    config.norm_pix_loss = True

    # Biases and norms are exempt from weight decay; the mask token is not.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)
    config.optimizer.lr = 1.5e-4  # per 256 pairs
    config.optimizer.lr_reference_batch = 256

    config.compute.dtype = "float32"  # unlike the first version, which mixes precisions

    config.schedule.update(name="cosine", warmup="12 epochs", start_lr=0.0, end_lr=0.0, length="250 epochs")

    config.batch_size = 256
    config.duration = "125 epochs"
    common.watch_pairs(config)
    return config
