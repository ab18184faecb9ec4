"""G2SD's specific distillation on Fashion-MNIST, a small ViT from a larger one: minutes on two CPU cores.

    python -m mim_jax.train --config=configs/g2sd_fashion_mnist_distillation.py --workdir=runs/g2sd_fashion_distilled

It starts from the run of `configs/g2sd_fashion_mnist.py` (`--config.init_from=None` for a random start). Its teacher
is the MAE that taught the first stage, fine-tuned; without the first two of these commands,
`--config.teacher.weights=random` tries things out.

    python -m mim_jax.train --config=configs/mae_fashion_mnist_finetune.py \\
        --config.model.width=144 --config.model.depth=6 --config.init_from=runs/mae_fashion_mnist_teacher \\
        --workdir=runs/mae_fashion_mnist_teacher_finetune
    python -m mim_jax.train --config=configs/g2sd_fashion_mnist.py \\
        --config.teacher.weights=runs/mae_fashion_mnist_teacher --workdir=runs/g2sd_fashion_mnist

Values are this project's own; the method is Huang et al. 2023 (arXiv 2302.14771).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(task="distillation")
    config.init_from = "runs/g2sd_fashion_mnist"
    config.init_parts = ("encoder",)
    config.teacher.update(name="vit_finetuned", patch_size=4, width=144, depth=6, heads=3)
    config.teacher.weights = "runs/mae_fashion_mnist_teacher_finetune"

    common.fashion_mnist(config)
    config.num_classes = 10
    config.label_smoothing = 0.1
    config.mixing.update(probability=0.5, mixup_alpha=0.8, cutmix_alpha=1.0, cutmix_share=0.5)

    config.model.update(patch_size=4, width=96, depth=4, heads=3)
    config.model.update(pool="class", position="sincos_learned", drop_path=0.0)

    config.batch_size = 256
    config.duration = "5 epochs"
    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, weight_decay=0.05, layer_decay=0.75)
    config.optimizer.no_decay = ("bias$", "scale$", "position/table$", "class_token$", "registers$")
    config.optimizer.lr = 2e-3
    config.optimizer.lr_reference_batch = None
    config.schedule.update(name="cosine", warmup="0.5 epochs")

    common.watch_fashion_mnist(config, tasks=("accuracy",))
    config.evaluation.every = "1 epochs"
    return config
