"""Fine-tuning of MAE's small ViT on Fashion-MNIST: minutes on two CPU cores.

    python -m mim_jax.train --config=configs/mae_fashion_mnist_finetune.py --workdir=runs/mae_fashion_mnist_finetune

It starts from the run of configs/mae_fashion_mnist.py; `--config.init_from=None` trains the same model from scratch.
Values are this project's own: the recipe of He et al. 2022 (arXiv 2111.06377), milder for small images and a short run.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(task="classification")
    config.init_from = "runs/mae_fashion_mnist"
    config.init_parts = ("encoder",)

    common.fashion_mnist(config)
    config.num_classes = 10
    config.label_smoothing = 0.1
    config.mixing.update(probability=0.5, mixup_alpha=0.8, cutmix_alpha=1.0, cutmix_share=0.5)

    config.model.update(patch_size=4, width=96, depth=4, heads=3)
    config.model.update(pool="mean", position="sincos_learned", drop_path=0.05)

    config.batch_size = 256
    config.duration = "5 epochs"
    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, weight_decay=0.05, layer_decay=0.75)
    config.optimizer.no_decay = ("bias$", "scale$", "position/table$", "class_token$")
    config.optimizer.lr = 2e-3
    config.optimizer.lr_reference_batch = None
    config.schedule.update(name="cosine", warmup="0.5 epochs")

    common.watch_fashion_mnist(config, tasks=("accuracy",))
    config.evaluation.every = "1 epochs"
    return config
