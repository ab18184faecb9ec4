"""The layers of layer-wise learning rate decay, as SparK's, ConvNeXt's and Swin's fine-tuning codes count them."""

import jax
import numpy as np
import pytest

import mim_jax
from mim_jax.models import convnext, resnet, swin
from mim_jax.models.layer_groups import count_layers
from mim_jax.training.optimizer import layer_scales
from mim_jax.training.paths import map_with_name


def scales_of(backbone, size):
    """The multiplier of every parameter of a classifier with that encoder, flat by name, for a decay of 0.5."""
    config = mim_jax.default_config(task="classification", backbone=backbone)
    config.model.update(**size)
    objective = mim_jax.create(config)
    params = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())["params"]
    scales, found = layer_scales(params, 0.5, objective.encoder), {}
    map_with_name(lambda name, scale, leaf: found.update({name: (scale, leaf)}), scales, params)
    for name, (scale, leaf) in found.items():
        assert np.broadcast_shapes(scale.shape, leaf.shape) == leaf.shape, name
    return {name: np.ravel(scale) for name, (scale, _) in found.items()}


def test_neighbouring_blocks_form_layers():
    assert count_layers((1, 2, 4), (1, 2, 3)) == [(1,), (2, 2), (3, 3, 3, 4)]


@pytest.mark.parametrize(
    ("backbone", "size", "expected"),
    [
        (
            "resnet",
            resnet.resnet_size("50"),  # 7 is the head's
            {
                "encoder/stem_conv/kernel": 0,
                "encoder/stage1/blocks/conv1/kernel": [1, 1],
                "encoder/stage2/first/conv2/kernel": 2,
                "encoder/stage2/blocks/norm1/scale": [2, 3, 3],
                "encoder/stage3/blocks/conv3/kernel": [4, 4, 5, 5, 5],
                "encoder/stage4/first/conv_shortcut/kernel": 6,
                "head/kernel": 7,
            },
        ),
        (
            "convnext",
            convnext.convnext_size("S"),
            {
                "encoder/stem_norm/scale": 0,
                "encoder/stage0/blocks/gamma": [1, 1, 1],
                "encoder/reduce1_conv/kernel": 2,
                "encoder/stage2/blocks/fc1/kernel": [3 + block // 3 for block in range(27)],
                "encoder/reduce3_norm/scale": 12,
                "encoder/stage3/blocks/gamma": [12, 12, 12],
                "norm/scale": 13,
                "head/kernel": 13,
            },
        ),
        (
            "swin",
            swin.swin_size("B"),
            {
                "encoder/patch_embed/projection/kernel": 0,
                "encoder/stage1/stack/blocks/even/norm1/scale": [1],
                "encoder/stage1/merge/reduction/kernel": 2,
                "encoder/stage3/stack/blocks/odd/norm2/scale": [6 + 2 * pair for pair in range(9)],
                "encoder/stage4/stack/blocks/odd/norm2/scale": [24],
                "encoder/norm/scale": 25,
                "head/kernel": 25,
            },
        ),
    ],
    ids=["resnet", "convnext", "swin"],
)
def test_layers_are_those_of_the_official_codes(backbone, size, expected):
    scales = scales_of(backbone, size)
    top = int(np.max(expected["head/kernel"]))
    for name, layers in expected.items():
        np.testing.assert_allclose(scales[name], 0.5 ** (top - np.atleast_1d(layers)), rtol=1e-6, err_msg=name)
