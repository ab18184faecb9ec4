"""SimMIM, Swin-L on ImageNet-1k for 800 epochs (Xie et al. 2022, arXiv 2111.09886).

    python -m mim_jax.train --config=configs/simmim_swin_l_in1k.py --workdir=runs/simmim_swin_l

Published ImageNet-1k top-1, fine-tuned at 224 px with windows of 14: 85.4 %. All values are those of the official
configuration that gave the released checkpoint; what is not said here is as for Swin-B.
"""

from ml_collections import ConfigDict

from configs import simmim_swin_b_in1k
from mim_jax.models.swin import swin_size


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = simmim_swin_b_in1k.get_config("800")
    # The last map has 6 tokens along a side, and so has its window.
    config.model.update(**swin_size("L"), window=12)
    return config
