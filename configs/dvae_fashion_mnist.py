"""A discrete VAE on Fashion-MNIST: 128 visual tokens of 4x4 pixels, learned in a minute or two on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/dvae_fashion_mnist.py --workdir=runs/dvae_fashion_mnist

The tokenizer of `configs/cae_fashion_mnist.py`. The values are this project's own; the method is Ramesh et al. 2021
(arXiv 2102.12092), whose network is much larger and whose divergence has another weight.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="dvae")

    common.fashion_mnist(config)

    config.model.update(width=64, groups=3, depth=1, num_codes=128, code_width=32)

    config.temperature_share = 0.8
    config.kl_weight = 0.2
    config.kl_share = 0.2
    config.min_log_scale = -1.0

    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, weight_decay=1e-4, clip_norm=1.0)
    config.optimizer.no_decay = ("bias$",)
    config.optimizer.lr = 3e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="50 steps")

    config.batch_size = 64
    config.duration = "300 steps"
    common.watch_fashion_mnist(config, tasks=("reconstruct",))
    config.evaluation.every = "150 steps"  # from step 0
    return config
