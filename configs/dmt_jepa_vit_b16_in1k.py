"""DMT-JEPA, ViT-B/16 on ImageNet-1k for 600 epochs (Mo and Yun 2024, arXiv 2405.17995).

    python -m mim_jax.train --config=configs/dmt_jepa_vit_b16_in1k.py --workdir=runs/dmt_jepa_vit_b16

All values are those of the official code's configuration of this model, which is I-JEPA's recipe but for the head. The
one deliberate difference: a patch's neighbours are asked by the mean of its own image. The official code asks by the
means of the images of a device's batch in turn, which --config.head.query_image=official does over the whole batch.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="dmt_jepa")

    # No flip and no colour: the only augmentation is the crop.
    common.imagenet(config, crop_scale=(0.3, 1.0), interpolation="bilinear", flip=False)

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0)
    config.predictor.update(width=384, depth=6)  # as many heads as the encoder
    config.head.update(depth=2, mlp_ratio=4.0, window=3, neighbors=4)  # as many heads as the encoder
    config.head.update(query_image="own", context_attn="cross-attn", target_attn="cross-attn")
    config.ema_momentum = 0.996  # linear to 1 over the run, for encoder and head

    config.blocks.update(num_targets=4, target_scale=(0.15, 0.2), target_aspect=(0.75, 1.5), context_scale=(0.85, 1.0))
    # The official code cuts every context to the shortest of the device's batch. Simulated with its 256 images a device
    # on this 14x14 grid, that leaves 48 tokens (median of 400 batches, 80 % of them in 38-57).
    config.blocks.context_share = 0.245

    # The weight decay rises along a cosine; biases and norms are exempt, the predictor's mask token is not.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.04, weight_decay_end=0.4)
    config.optimizer.lr = 1e-3
    config.optimizer.lr_reference_batch = None  # absolute, for batches of 2048

    config.schedule.update(name="cosine", warmup="40 epochs", start_lr=2e-4, end_lr=1e-6)
    config.schedule.offset = 1  # the official schedules advance before they are read

    config.batch_size = 2048
    config.duration = "600 epochs"
    common.watch_imagenet(config, tasks=("knn",))
    return config
