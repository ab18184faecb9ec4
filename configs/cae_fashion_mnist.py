"""CAE on Fashion-MNIST, a small ViT: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/cae_fashion_mnist.py --workdir=runs/cae_fashion_mnist

So it predicts the tokens of a random network, to try things out. Tokens that mean something are learned first, in a
minute by `configs/dvae_fashion_mnist.py`, and given by `--config.tokenizer.weights=runs/dvae_fashion_mnist`. The values
are this project's own; the method is Chen et al. 2023 (arXiv 2202.03026).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="cae")

    common.fashion_mnist(config)

    config.model.update(patch_size=4, width=96, depth=4, heads=3)
    config.regressor.update(width=96, depth=2, heads=3)
    config.decoder.depth = 1
    config.tokenizer.update(weights="random", width=64, groups=3, depth=1, num_codes=128)

    config.mask_ratio = 0.5
    config.min_block = 8  # of 49 patches

    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, weight_decay=0.05, clip_norm=3.0)
    config.optimizer.no_decay = ("bias$", "scale$", r"gamma\d$")
    config.optimizer.lr = 2e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn",))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
