import pytest

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.models import backbone, conv_vit, vit
from tests.tiny import tiny_config


def test_a_config_names_its_encoder():
    assert isinstance(backbone.build(tiny_config("convmae")), conv_vit.ConvViT)
    assert isinstance(backbone.build(tiny_config("mae")), vit.ViT)


def test_an_unknown_backbone_is_refused():
    with pytest.raises(ConfigError, match="model.backbone is 'resnet'; choose one of conv_vit, vit"):
        backbone.build(tiny_config("mae", {"model.backbone": "resnet"}))


@pytest.mark.parametrize("method", ["mae", "simmim", "mixedae"])
def test_a_method_refuses_a_backbone_it_does_not_work_with(method):
    with pytest.raises(ConfigError, match=f"'conv_vit', which {method} does not work with; set it to 'vit'"):
        mim_jax.create(tiny_config(method, {"model.backbone": "conv_vit"}))
