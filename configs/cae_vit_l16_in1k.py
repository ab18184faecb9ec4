"""CAE, ViT-L/16 on ImageNet-1k for 1600 epochs (Chen et al. 2023, arXiv 2202.03026).

    python -m mim_jax.train --config=configs/cae_vit_l16_in1k.py --workdir=runs/cae_vit_l16 \\
        --config.tokenizer.weights=encoder.pt

For the tokenizer's weights see `configs/cae_vit_b16_in1k.py`. Published ImageNet-1k top-1 at 224 px: 86.2 % fine-tuned,
77.8 % by linear probe, 81.2 % by attentive probe.

The official command means to widen the regressor to 1024, but for want of a backslash its last three options are lost:
as it stands it runs a regressor of 768 channels. Which of the two the released weights have was not checked; the other
is `--config.regressor.width=1024`, with 12 heads of 85 channels, since the number of heads is never passed on. Nor is
the layer scale of regressor and decoder, so that theirs starts at 0.1 and the encoder's at 1e-5.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="cae")

    common.imagenet(config, crop_scale=(0.08, 1.0), interpolation="bicubic", flip=True)

    config.image_size = 224
    config.model.update(patch_size=16, width=1024, depth=24, heads=16, mlp_ratio=4.0)
    config.model.update(position="sincos_rows_first", qkv_bias="qv", layer_scale=1e-5, drop_path=0.1)
    config.regressor.update(width=768, depth=4, heads=12, mlp_ratio=4.0, layer_scale=0.1, drop_path=0.1)
    config.decoder.depth = 4
    config.tokenizer.update(width=2048, groups=4, depth=2, num_codes=8192)

    config.mask_ratio = 0.5  # 98 of 196 patches
    config.min_block = 16
    config.min_aspect = 0.3
    config.align_weight = 2.0

    # Biases, norms and layer scales are exempt from weight decay; the class and mask tokens are not.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05, clip_norm=3.0)
    config.optimizer.no_decay = ("bias$", "scale$", r"gamma\d$")
    config.optimizer.lr = 1.5e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="40 epochs", start_lr=0.0, end_lr=1e-5, warmup_reaches_peak=True)

    config.batch_size = 2048
    config.duration = "1600 epochs"
    common.watch_imagenet(config, tasks=("knn",))
    return config
