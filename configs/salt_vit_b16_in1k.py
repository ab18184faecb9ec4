"""SALT's second stage, ViT-B/16 on ImageNet-1k images for 200,000 steps (Li et al. 2025, arXiv 2509.24317).

    python -m mim_jax.train --config=configs/salt_vit_b16_in1k.py --workdir=runs/salt_vit_b16_in1k

The teacher is a run of `salt_pixel_vit_b16_in1k.py`: `--config.teacher.weights=runs/salt_pixel_vit_b16_in1k`.
The paper's method is for clips; this is its recipe on still images, a port of this project's own for which nothing is
published. See `salt_vit_l16_video.py` for what is known of it.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="salt")

    common.imagenet(config, crop_scale=(0.3, 1.0), interpolation="bilinear", flip=True)
    config.data.crop_ratio = (0.75, 1.35)

    config.image_size = 224
    config.num_frames = 1
    config.model.update(patch_size=16, tubelet_size=1, width=768, depth=12, heads=12, mlp_ratio=4.0)
    config.model.position = "sincos_rows_first"  # as V-JEPA's own table of images has it
    config.predictor.update(width=384, depth=12, heads=16, mlp_ratio=4.0)
    # A small and briefly trained teacher is enough, the paper finds; here one of the student's size.
    config.teacher.update(weights="", width=768, depth=12, heads=12, mlp_ratio=4.0)
    config.normalize_targets = True

    # V-JEPA's short-range and long-range masks.
    config.blocks.update(num_blocks=(8, 2), scale=(0.15, 0.7), aspect=(0.75, 1.5), temporal_scale=(1.0, 1.0))
    # V-JEPA's code cuts all lists to the shortest of the device's batch. In batches of four on an 8x14x14 grid that
    # leaves 466 and 183 context tokens and 865 and 1167 targets of 1568 (means of 1000 simulated batches).
    config.blocks.update(context_share=(0.3, 0.12), target_share=(0.55, 0.75))

    # Biases and norms are exempt from weight decay. V-JEPA clips the gradients of encoder and predictor at a norm of 10
    # each after the warm-up; whether SALT does is unknown. So are the betas, which are V-JEPA's.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.04, weight_decay_end=0.4)
    config.optimizer.lr = 6.25e-4
    config.optimizer.lr_reference_batch = None  # absolute, for batches of 3072

    config.schedule.update(name="cosine", warmup="10000 steps", start_lr=2e-4, end_lr=1e-6)
    config.schedule.offset = 1  # V-JEPA's schedules advance before they are read

    config.batch_size = 3072
    config.duration = "200000 steps"
    common.watch_imagenet(config, tasks=("knn",))
    return config
