"""ColorMAE with green noise, ViT-B/16 on ImageNet-1k for 300 epochs (Hinojosa et al. 2024, arXiv 2407.13036).

    python -m mim_jax.train --config=configs/colormae_vit_b16_in1k.py --workdir=runs/colormae_vit_b16

Published, green against random masks: ImageNet-1k fine-tuned 83.0 to 82.8 %, ADE20K 45.8 to 44.5 mIoU; after 800 epochs
(`--config.duration="800 epochs"`) 83.6 to 83.2 % and 49.2 to 46.5 mIoU. The recipe is the official config, mmpretrain's
MAE. The noise is ours, with sigmas from an independent implementation, as the authors' are not known; theirs is
`--config.noise.colors="('green_noise_data_3072.npz',)"`.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="colormae")

    common.imagenet(config, crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True)

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0, position="sincos_rows_first")
    config.decoder.update(width=512, depth=8, heads=16, mlp_ratio=4.0)

    config.mask_ratio = 0.75
    config.norm_pix_loss = True
    config.noise.update(colors=("green",), epochs=(0,), band=(0.5, 2.0), field=64)
    config.noise.group = 512  # stored noise only: the images of one of the official run's eight devices

    # Here the tokens are exempt from weight decay as well.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)
    config.optimizer.no_decay = ("bias$", "scale$", "class_token$", "mask_token$")
    config.optimizer.lr = 1.5e-4  # per 256 images: 2.4e-3
    config.optimizer.lr_reference_batch = 256

    # start_lr is scaled as lr is: 1e-4 of the peak.
    config.schedule.update(name="cosine", warmup="40 epochs", start_lr=1.5e-8, end_lr=0.0)

    config.batch_size = 4096
    config.duration = "300 epochs"
    common.watch_imagenet(config, tasks=("knn", "reconstruct"))
    return config
