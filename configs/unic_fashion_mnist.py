"""UNIC on Fashion-MNIST from two small encoders: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/unic_fashion_mnist.py --workdir=runs/unic_fashion_mnist

That learns from teachers of random weights, which says a little. For the method, train the teachers first, with
`configs/mae_fashion_mnist.py` and `configs/ijepa_fashion_mnist.py`, and add
`--config.teachers.mae.weights=runs/mae_fashion_mnist --config.teachers.ijepa.weights=runs/ijepa_fashion_mnist`. The
values are this project's own; the method is Sariyildiz et al. 2024 (arXiv 2408.05088).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="unic")

    common.fashion_mnist(config)

    config.model.update(patch_size=4, width=96, depth=4, heads=3, drop_path=0.0)
    # Kernels of deviation 0.02 make almost nothing of 96 channels, and the gradient of its cosine explodes.
    config.model.init_scheme = "xavier"
    for teacher in config.teachers.values():
        teacher.enabled = False
    config.teachers.mae = dict(name="vit", weights="random", patch_size=4, width=96, depth=4, heads=3)
    # I-JEPA's has no class token: the mean of its patches takes that place.
    config.teachers.ijepa = dict(config.teachers.mae.to_dict(), class_token=False)

    config.optimizer.update(name="adamw", b1=0.9, b2=0.99, weight_decay=0.03)
    config.optimizer.lr = 1e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn",))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
