"""Self-distillation on Fashion-MNIST, a small ViT: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/self_distill_further_pretrain_fashion_mnist.py --workdir=runs/self_distill

By itself that starts from nothing and stays near a random network, which serves to try things out. For the method, let
a first run stand for the public weights, go on with it for the teacher, and then start from the first one again:

    python -m mim_jax.train --workdir=runs/public --config=configs/mae_fashion_mnist.py
    python -m mim_jax.train --workdir=runs/further --config=configs/mae_fashion_mnist.py \\
        --config.init_from=runs/public --config.schedule.warmup="0 steps" --config.optimizer.lr=1e-3

and add `--config.init_from=runs/public --config.teacher.weights=runs/further`. The values are this project's own; the
method is Lee et al. 2023 (arXiv 2210.02871).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="self_distill_further_pretrain")

    common.fashion_mnist(config)

    # As in mae_fashion_mnist.py.
    config.model.update(patch_size=4, width=96, depth=4, heads=3, norm_epsilon=1e-6)
    config.decoder.update(width=64, depth=1, heads=2)
    config.mask_ratio = 0.6
    config.norm_pix_loss = False
    config.teacher.weights = "random"

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, weight_decay=0.01)
    config.optimizer.lr = 1e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="linear", warmup="0 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn", "reconstruct"))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
