"""G2SD's generic distillation, ViT-Ti/16 from ViT-B/16 on ImageNet-1k for 300 epochs (Huang et al. 2023).

    python -m mim_jax.train --config=configs/g2sd_vit_ti16_in1k.py --workdir=runs/g2sd_vit_ti16 \\
        --config.teacher.weights=mae_visualize_vit_base.pth

As `configs/g2sd_vit_s16_in1k.py`, with the smaller student and its smaller decoder (arXiv 2302.14771).
"""

from ml_collections import ConfigDict

from configs import g2sd_vit_s16_in1k


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    config = g2sd_vit_s16_in1k.get_config(arg)

    config.model.update(width=192, depth=12, heads=3)
    config.decoder.update(width=128, depth=4, heads=4)
    return config
