"""Layouts are found by name, and none of them claims a name or a path twice."""

import math

import numpy as np
import pytest

import mim_jax
from mim_jax.errors import WeightsError
from mim_jax.interop.layout import Fused, Rule, best_layout, find_layout, layout_names, make_context
from tests.tiny import METHODS, tiny_config

# Objectives that between them have every part a layout knows.
OBJECTIVES = ("mae", "simmim", "ijepa", "dmjd", "convmae", "crate_mae", "classification", "linear_probe")


def test_every_file_is_a_layout():
    assert {"facebookresearch/mae", "microsoft/simmim", "transformers/vit_mae", "timm/vit"} <= set(layout_names())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", layout_names())
def test_names_and_paths_are_unique_and_shapes_agree(tiny, name, objective):
    try:
        _, context, layout = find_layout(tiny(objective), name)
    except WeightsError as error:
        assert "model.backbone" in str(error)
        pytest.skip("made for another backbone")
    names, paths = [], []
    for rule in layout.rules:
        if rule.path in context.shapes:
            shape = context.shapes[rule.path].shape
            names += rule.tensor_names(shape)
            paths.append(rule.path)
            assert all(length > 0 for length in rule.expected_shape(shape))
        else:
            names += rule.names
    names += [fixed.name for fixed in layout.fixed]
    assert len(set(paths)) == len(paths) > 0
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("method", METHODS)
def test_a_better_layout_is_looked_for_whatever_the_method(method):
    """In all of them, those too for which its decoder, its predictor or its teacher is of another kind."""
    assert best_layout(make_context(mim_jax.create(tiny_config(method))), ["foreign"]) is None


def test_a_misspelt_layout_names_the_nearest(tiny):
    with pytest.raises(
        WeightsError, match=r"no weights layout 'facebook/mae' \(did you mean 'facebookresearch/mae'\?\)"
    ):
        find_layout(tiny("mae"), "facebook/mae")


def test_names_are_not_case_sensitive(tiny):
    assert find_layout(tiny("simmim"), "Microsoft/SimMIM")[0] == "microsoft/simmim"


def test_hyphens_of_an_owner_are_understood(tiny):
    assert find_layout(tiny("mae"), "Haochen-Wang409/HPM")[0] == "haochen_wang409/hpm"


def test_an_unknown_variant_is_refused(tiny):
    with pytest.raises(WeightsError, match="has no variant 'predictor'; it has encoder"):
        find_layout(tiny("ijepa"), "facebookresearch/ijepa:predictor")


@pytest.mark.parametrize(
    ("objective", "expected"),
    [("mae", "vit_mae"), ("ijepa", "ijepa"), ("classification", "vit"), ("simmim", "vit_mim")],
)
def test_an_owner_stands_for_the_layout_that_holds_the_most(tiny, objective, expected):
    config = {"classification": {"model": {"pool": "class"}}}.get(objective, {})
    assert find_layout(tiny(objective, **config), "transformers")[0] == f"transformers/{expected}"


def test_an_owner_without_layouts_is_refused(tiny):
    with pytest.raises(WeightsError, match="no weights layout 'nobody'"):
        find_layout(tiny("mae"), "nobody")


@pytest.mark.parametrize(
    ("method", "name", "shapes", "numbers"),
    [
        (
            "mae",
            "facebookresearch/mae",
            {
                "cls_token": (1, 1, 768),
                "pos_embed": (1, 197, 768),
                "patch_embed.proj.weight": (768, 3, 16, 16),
                "blocks.11.attn.qkv.weight": (2304, 768),
                "decoder_pos_embed": (1, 197, 512),
                "decoder_pred.weight": (768, 512),
            },
            111_907_840,  # with the fixed tables
        ),
        (
            "simmim",
            "microsoft/simmim",
            {
                "encoder.rel_pos_bias.relative_position_bias_table": (732, 12),
                "encoder.rel_pos_bias.relative_position_index": (197, 197),
                "encoder.blocks.0.attn.q_bias": (768,),
                "decoder.0.weight": (768, 768, 1, 1),
            },
            85_666_128 + 590_592 + 197 * 197,  # the index is a buffer
        ),
        (
            "ijepa",
            "facebookresearch/ijepa",
            {"target_encoder.pos_embed": (1, 196, 768), "predictor.predictor_proj.weight": (768, 384)},
            2 * (85_646_592 + 196 * 768) + 11_238_912 + 196 * 384,
        ),
    ],
)
def test_checkpoints_of_vit_b_have_the_official_shapes_and_size(method, name, shapes, numbers):
    _, context, layout = find_layout(mim_jax.create({"method": method}), name)
    found = {fixed.name: fixed.value.shape for fixed in layout.fixed}
    for rule in layout.rules:
        if rule.path in context.shapes:
            shape = context.shapes[rule.path].shape
            found |= dict.fromkeys(rule.tensor_names(shape), rule.expected_shape(shape))
    assert found | shapes == found
    assert sum(math.prod(shape) for shape in found.values()) == numbers


def test_fused_tensors_are_cut_and_put_together_again():
    fused = Fused("blocks.{i}.in_proj", ("blocks.{i}.query", "blocks.{i}.key", "blocks.{i}.value"))
    tensors = {f"blocks.{layer}.in_proj": np.arange(6.0).reshape(6, 1) + 10 * layer for layer in (0, 1)}
    pieces = {name: piece for key, tensor in tensors.items() for name, piece in fused.split(key, tensor).items()}
    assert list(pieces) == [f"blocks.{layer}.{which}" for layer in (0, 1) for which in ("query", "key", "value")]
    np.testing.assert_array_equal(pieces["blocks.1.key"], [[12.0], [13.0]])
    joined = {**pieces, "norm": np.ones(1)}
    fused.join(joined)
    assert joined.keys() == {*tensors, "norm"}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(joined[name], tensor)


@pytest.mark.parametrize(
    ("name", "shape"), [("blocks.0.other", (6, 1)), ("blocks.0.in_proj", (5, 1)), ("blocks.0.in_proj", ())]
)
def test_what_is_no_fused_tensor_stays_whole(name, shape):
    fused = Fused("blocks.{i}.in_proj", ("blocks.{i}.query", "blocks.{i}.key", "blocks.{i}.value"))
    assert fused.split(name, np.zeros(shape)) == {}


def test_a_parameter_may_hold_every_other_layer_of_a_checkpoint():
    even, odd = (Rule(("blocks.{i}.scale",), "", first=first, every=2) for first in (0, 1))
    assert even.tensor_names((3, 4)) == ["blocks.0.scale", "blocks.2.scale", "blocks.4.scale"]
    assert odd.tensor_names((2, 4)) == ["blocks.1.scale", "blocks.3.scale"]
    names = [f"blocks.{layer}.scale" for layer in range(4)]
    assert [rule.matches(name) for rule in (even, odd) for name in names] == [True, False] * 2 + [False, True] * 2
    assert not odd.matches("blocks.1.bias")
    parameter = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(odd.to_ours(odd.to_theirs(parameter), (2, 3)), parameter)
