"""MR-MAE with ConvMAE's hybrid encoder (MR-MCMAE, ConvMAE-v2) on ImageNet-1k for 400 epochs (arXiv 2303.05475).

    python -m mim_jax.train --config=configs/mr_mae_conv_vit_b_in1k.py --workdir=runs/mr_mae_conv_vit_b \\
        --config.teacher.weights=ViT-B-16.safetensors

Published ImageNet-1k top-1 at 224 px, fine-tuned: 85.8 %; 85.7 % after 200 epochs. Teacher and all else are those of
`configs/mr_mae_vit_b16_in1k.py`. The student has no class token; the teacher's is not mimicked.
"""

from ml_collections import ConfigDict

from configs import mr_mae_vit_b16_in1k


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    config = mr_mae_vit_b16_in1k.get_config(arg)
    config.model.update(backbone="conv_vit", depth=11, class_token=False, pool="mean")
    config.model.stages.update(widths=(256, 384), depths=(2, 2), mlp_ratios=(4.0, 4.0))
    config.duration = "400 epochs"
    return config
