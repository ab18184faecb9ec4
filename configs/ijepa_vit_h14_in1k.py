"""I-JEPA, ViT-H/14 on ImageNet-1k for 300 epochs (Assran et al. 2023, arXiv 2301.08243).

    python -m mim_jax.train --config=configs/ijepa_vit_h14_in1k.py --workdir=runs/ijepa_vit_h14

Published linear-probe top-1: 79.3 % (300 epochs, ImageNet-1k; paper, table 1). All values are those of the
official code's configuration of this model.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="ijepa")

    # No flip and no colour: the only augmentation is the crop.
    common.imagenet(config, crop_scale=(0.3, 1.0), interpolation="bilinear", flip=False)

    config.image_size = 224
    config.model.update(patch_size=14, width=1280, depth=32, heads=16, mlp_ratio=4.0)
    config.predictor.update(width=384, depth=12)  # as many heads as the encoder
    config.ema_momentum = 0.996  # linear to 1 over the run

    config.blocks.update(num_targets=4, target_scale=(0.15, 0.2), target_aspect=(0.75, 1.5), context_scale=(0.85, 1.0))
    # The official code cuts every context to the shortest of the device's batch. Simulated with its 128 images a device
    # on this 16x16 grid, that leaves 69 tokens (median of 400 batches, 80 % of them in 57-81; an image alone: 110).
    config.blocks.context_share = 0.27

    # The weight decay rises along a cosine; biases and norms are exempt, the predictor's mask token is not.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.04, weight_decay_end=0.4)
    config.optimizer.lr = 1e-3
    config.optimizer.lr_reference_batch = None  # absolute, for batches of 2048

    config.schedule.update(name="cosine", warmup="40 epochs", start_lr=2e-4, end_lr=1e-6)
    config.schedule.offset = 1  # the official schedules advance before they are read

    config.batch_size = 2048
    config.duration = "300 epochs"
    config.compute.scan = True  # compiles one block instead of 32; the numbers are the same
    common.watch_imagenet(config, tasks=("knn",))
    return config
