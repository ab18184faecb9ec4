"""MAE with masked token optimization of its decoder, ViT-B/16 on ImageNet-1k for 800 epochs (arXiv 2404.08330).

    python -m mim_jax.train --config=configs/mae_mto_vit_b16_in1k.py --workdir=runs/mae_mto_vit_b16

No accuracy is claimed: the abstract says that about half the base method's epochs suffice. The forms and weights of the
losses are this project's reading (see mim_jax/models/masked_token_optimization.py); all else is the base recipe.
"""

from ml_collections import ConfigDict

from configs import mae_vit_b16_in1k


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    config = mae_vit_b16_in1k.get_config(arg)
    config.mto.enabled = True
    config.mto.update(temperature=0.1, rho=(0.0, 1.0), margin=0.0, warmup=0.1)
    config.mto.update(spa_weight=0.1, e_weight=0.1, r_weight=0.1)
    config.duration = "800 epochs"
    return config
