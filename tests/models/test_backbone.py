import pytest

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.models import backbone, conv_vit, vit
from tests.tiny import tiny_config


def test_a_config_names_its_encoder():
    assert isinstance(backbone.build(tiny_config("convmae")), conv_vit.ConvViT)
    assert isinstance(backbone.build(tiny_config("mae")), vit.ViT)


def test_an_unknown_backbone_is_refused():
    with pytest.raises(ConfigError, match="model.backbone is 'alexnet'; choose one of vit, conv_vit, swin"):
        backbone.build(tiny_config("mae", {"model.backbone": "alexnet"}))


@pytest.mark.parametrize("method", ["mae", "simmim", "mixedae"])
def test_a_method_refuses_a_backbone_it_does_not_work_with(method):
    with pytest.raises(ConfigError, match=rf"{method} .*, which model.backbone 'conv_vit' cannot do; choose vit"):
        mim_jax.create(tiny_config(method, {"model.backbone": "conv_vit"}))


def test_a_section_of_one_backbone_is_not_taken_for_that_of_another():
    config = tiny_config("mfm", {"model.backbone": "resnet"})
    with pytest.raises(ConfigError, match=r"start from default_config\(method='mfm', backbone='resnet'\)"):
        mim_jax.create(config)
