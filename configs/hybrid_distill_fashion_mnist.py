"""Hybrid Distillation on Fashion-MNIST, a small ViT: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/hybrid_distill_fashion_mnist.py --workdir=runs/hybrid_distill

So it learns from two random networks, which serves to try things out. For the method, train two encoders of the same
sizes first, one that discriminates and a masked autoencoder:

    python -m mim_jax.train --workdir=runs/contrastive --config=configs/mmc_fashion_mnist.py
    python -m mim_jax.train --workdir=runs/mae --config=configs/mae_fashion_mnist.py

and add `--config.contrastive.weights=runs/contrastive --config.reconstructive.weights=runs/mae`. The values are this
project's own; the method is Shi et al. 2024 (arXiv 2306.15876).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="hybrid_distill")

    common.fashion_mnist(config)

    config.model.update(patch_size=4, width=96, depth=4, heads=3)
    for name in ("contrastive", "reconstructive"):
        config[name].update(name="vit", weights="random", patch_size=4, width=96, depth=4, heads=3)
    config.relations = ("query_key", "value_value")
    config.keep_shares = (1.0, 0.85, 0.7)  # 49, 42 and 34 patches

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    config.optimizer.lr = 1e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn",))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
