"""V-Pixel, the first stage of SALT, ViT-L/16 on clips for 40,000 steps (Li et al. 2025, arXiv 2509.24317).

    python -m mim_jax.train --config=configs/salt_pixel_vit_l16_video.py --workdir=runs/salt_pixel_vit_l16_video

No data source here has clips: without them the command ends in an error that says so. They are handed in, as
{"video": float32 [B, 16, 224, 224, 3]} in ImageNet's normalisation, by the argument `batches` of
`mim_jax.training.loop.Trainer`. Their augmentation is a random resized crop (0.3 to 1 of the area, aspect ratios of
0.75 to 1.35), one for all frames of a clip, and mirroring.

The code is not public: the recipe is what the paper's tables are quoted with, the architecture V-JEPA's. The decoder's
sizes and the normalised pixels are a re-implementation's. Published numbers could not be confirmed.
"""

from ml_collections import ConfigDict

import mim_jax


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="salt_pixel")

    # Stands for a mix of public videos: of it the run reads the number of clips alone, for the epochs of its log.
    config.data.source = "synthetic:3000000"

    config.image_size = 224
    config.num_frames = 16
    config.model.update(patch_size=16, tubelet_size=2, width=1024, depth=24, heads=16, mlp_ratio=4.0)
    config.decoder.update(width=512, depth=8, heads=8, mlp_ratio=4.0)
    config.norm_pix_loss = True

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
    config.duration = "40000 steps"
    config.compute.scan = True  # compiles one block instead of 24; the numbers are the same
    config.log.every = "100 steps"
    config.checkpoint.every = "1000 steps"
    return config
