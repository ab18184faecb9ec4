"""MAE with LDReg on Fashion-MNIST, a small ViT: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/mae_ldreg_fashion_mnist.py --workdir=runs/mae_ldreg_fashion_mnist

Not measured to the end. The values are this project's own; LDReg is Huang et al. 2024 (arXiv 2401.10474). The term
`terms/ldreg` and the mean dimension `metrics/lid` are logged from the first step on and count from a tenth of an epoch.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="mae")

    common.fashion_mnist(config)

    config.model.update(patch_size=4, width=96, depth=4, heads=3)
    config.decoder.update(width=64, depth=1, heads=2)

    config.mask_ratio = 0.6
    config.norm_pix_loss = False  # most border patches are plain black: nothing to normalise

    config.regularizer.ldreg.update(weight=1e-3, k=32, estimator="mom_epsilon", sign="signed", warmup_epochs=0.1)

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    config.optimizer.lr = 2e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn", "reconstruct"))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
