"""CAE v2, ViT-B/16 on ImageNet-1k for 300 epochs (Zhang et al. 2023, arXiv 2211.09799).

    python -m mim_jax.train --config=configs/cae_v2_vit_b16_in1k.py --workdir=runs/cae_v2_vit_b16 \\
        --config.teacher.weights=ViT-B-16.safetensors

The teacher is OpenAI's CLIP ViT-B/16 with its projection: the state_dict of the archive, or, with
`--config.teacher.layout=transformers/clip`, a file of transformers. All values are those of the official command; its
smaller students hide less, 49 patches (ViT-S, mask_ratio 0.25) and 30 (ViT-Ti, 0.153). There the colours of the whole
photo are changed, and then it is cropped; here those of the crop.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="cae_v2")

    common.imagenet(config, crop_scale=(0.4, 1.0), interpolation="bicubic", flip=True)
    config.data.color_jitter = (0.4, 0.4, 0.4, 0.0)

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0)
    config.model.update(position="sincos_rows_first", qkv_bias="qv", layer_scale=0.1, drop_path=0.1)
    config.regressor.update(width=768, depth=4, heads=12, mlp_ratio=4.0, layer_scale=0.1, drop_path=0.1)
    config.teacher.name = "clip_vit_b16"
    config.target_width = 512

    config.mask_ratio = 0.5  # 98 of 196 patches
    config.min_block = 16
    config.min_aspect = 0.3

    # Biases, norms and layer scales are exempt from weight decay; the class and mask tokens are not.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05, clip_norm=3.0)
    config.optimizer.no_decay = ("bias$", "scale$", r"gamma\d$")
    config.optimizer.lr = 1.5e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="10 epochs", start_lr=0.0, end_lr=1e-5, warmup_reaches_peak=True)

    config.batch_size = 2048
    config.duration = "300 epochs"
    common.watch_imagenet(config, tasks=("knn",))
    return config
