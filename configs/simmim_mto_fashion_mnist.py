"""SimMIM with masked token optimization on Fashion-MNIST, a small ViT: minutes on two CPU cores.

    python -m mim_jax.train --config=configs/simmim_mto_fashion_mnist.py --workdir=runs/simmim_mto_fashion_mnist

The values are this project's own; the addition is Choi et al. 2024 (arXiv 2404.08330).
"""

from ml_collections import ConfigDict

from configs import simmim_fashion_mnist


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    config = simmim_fashion_mnist.get_config(arg)
    config.mto.enabled = True
    return config
