"""Everything in a source finds its place and every leaf its value, or the import says what does not."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mim_jax
from mim_jax.errors import WeightsError
from mim_jax.interop import WeightsWarning, import_with_report
from mim_jax.interop.exporting import to_tensors
from mim_jax.interop.layout import find_layout

MAE = "facebookresearch/mae"


@pytest.fixture
def mae(tiny):
    return tiny("mae")


@pytest.fixture
def state(mae, checkpoint):
    return checkpoint(mae, MAE)


def initialised(objective):
    return jax.jit(lambda rng: objective.init(rng, objective.batch_spec()))(jax.random.key(objective.config.seed))


def test_all_mismatches_are_listed_at_once(mae, state):
    del state["norm.bias"]
    del state["blocks.1.mlp.fc1.weight"]
    state["blocks.0.attn.proj.weight"] = state["blocks.0.attn.proj.weight"][:, :8]
    state["blocks.1.norm1.weight"][3] = np.nan
    state["decoder_embed.bias"] = state["decoder_embed.bias"].astype(np.int64)
    state["relative_position"] = np.ones(3, np.float32)
    with pytest.raises(WeightsError) as error:
        mim_jax.import_weights(mae, state, MAE)
    lines = str(error.value).splitlines()
    assert lines[0] == "the given mapping does not fit this objective in layout 'facebookresearch/mae':"
    assert sorted(line.strip() for line in lines[1:]) == [
        "int64 where float32 is expected: decoder_embed.bias",
        "left over in the source: relative_position",
        "missing from the source: blocks.1.mlp.fc1.weight, norm.bias",
        "not finite (NaN or infinity; pass allow_nonfinite=True to load them all the same): blocks.1.norm1.weight",
        "shape (16, 8) where (16, 16) is expected: blocks.0.attn.proj.weight",
    ]


def test_messages_name_tensors_as_the_source_does(mae, state):
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    del state["module.norm.bias"]
    state["module.extra"] = np.ones(2, np.float32)
    with pytest.raises(WeightsError, match=r"left over in the source: model\.module\.extra"):
        mim_jax.import_weights(mae, {"model": state}, MAE)


def test_a_number_too_large_for_float32_is_not_finite(mae, state):
    state["norm.bias"] = np.full(16, 1e300)
    with pytest.raises(WeightsError, match=r"not finite \(NaN or infinity; .*\): norm\.bias"):
        mim_jax.import_weights(mae, state, MAE)


def test_a_deeper_source_is_refused(tiny, checkpoint):
    deep = checkpoint(tiny("mae", model=dict(depth=4)), MAE)
    with pytest.raises(
        WeightsError, match=r"deeper than this model \(see model\.depth\): blocks\.\{2-3\}\.norm1\.weight"
    ):
        mim_jax.import_weights(tiny("mae"), deep, MAE)
    with pytest.raises(WeightsError, match=r"missing from the source: blocks\.\{2-3\}\.norm1\.weight"):
        mim_jax.import_weights(tiny("mae", model=dict(depth=4)), checkpoint(tiny("mae"), MAE), MAE)


def test_the_wrong_layout_names_the_right_one(mae, state, checkpoint):
    with pytest.raises(
        WeightsError, match=r"holds nothing that layout 'microsoft/simmim' knows.*looks like layout 'fac"
    ):
        mim_jax.import_weights(mae, state, "microsoft/SimMIM")
    with pytest.raises(WeightsError, match="no tensors at all"):
        mim_jax.import_weights(mae, {}, MAE)


def test_two_tensors_of_one_name_are_refused(mae, state):
    state["module.norm.bias"] = state["norm.bias"]
    with pytest.raises(WeightsError, match=r"calls 'norm\.bias': module\.norm\.bias"):
        mim_jax.import_weights(mae, state, MAE)


def test_swapped_halves_of_a_fixed_position_table_are_refused(mae, state):
    table = state["pos_embed"]
    state["pos_embed"] = table.astype(object)
    with pytest.raises(WeightsError, match="object where float32 is expected: pos_embed"):
        mim_jax.import_weights(mae, state, MAE)
    state["pos_embed"] = np.concatenate([table[..., 8:], table[..., :8]], axis=-1)
    with pytest.raises(
        WeightsError, match=r"differs by \S+ from the constant it is here; set model\.position='learned'"
    ):
        mim_jax.import_weights(mae, state, MAE)
    state["pos_embed"], state["decoder_pos_embed"] = table, state["decoder_pos_embed"] + 2e-5
    with pytest.raises(WeightsError, match=r"it cannot be changed here: decoder_pos_embed"):
        mim_jax.import_weights(mae, state, MAE)


def test_a_table_for_a_model_without_positions_is_refused(tiny, state):
    objective = tiny("mae", model=dict(position="none"))
    with pytest.raises(WeightsError, match=r"set model\.position='learned' to use the source's own: pos_embed"):
        mim_jax.import_weights(objective, state, MAE)
    state["pos_embed"] = np.zeros_like(state["pos_embed"])
    mim_jax.import_weights(objective, state, MAE)


def test_a_wrong_relative_index_is_refused(tiny, checkpoint):
    objective = tiny("simmim")
    state = checkpoint(objective, "microsoft/simmim")
    name = "encoder.rel_pos_bias.relative_position_index"
    state[name] = state[name].T.copy()
    with pytest.raises(WeightsError, match="relative_position_index"):
        mim_jax.import_weights(objective, state, "microsoft/simmim")


def test_without_its_decoder_the_decoder_is_random_and_said_to_be(mae, state, random_variables):
    encoder = {name: tensor for name, tensor in state.items() if "decoder" not in name and name != "mask_token"}
    with pytest.warns(WeightsWarning) as record:
        variables, report = import_with_report(mae, encoder, MAE)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["decoder"]))
    message = f"params/decoder is not in the source: left random ({count:,} numbers)."
    assert [str(warning.message) for warning in record] == [f"the given mapping: {message}"]
    assert f"  left random params/decoder: {count:,} numbers" in str(report).splitlines()
    loaded = random_variables(mae)["params"]["encoder"]
    jax.tree.map(np.testing.assert_array_equal, variables["params"]["encoder"], loaded)
    fresh = initialised(mae)["params"]["decoder"]
    jax.tree.map(np.testing.assert_array_equal, variables["params"]["decoder"], fresh)
    with pytest.raises(WeightsError, match="does not hold all of the objective: params/decoder is not in the source"):
        mim_jax.import_weights(mae, encoder, MAE, strict=True)


def test_a_part_of_which_only_some_is_there_is_refused(mae, state):
    del state["decoder_norm.weight"]
    with pytest.raises(WeightsError, match=r"missing from the source: decoder_norm\.weight"):
        mim_jax.import_weights(mae, state, MAE)


def test_pre_trained_weights_start_a_classifier(tiny, state):
    objective = tiny("classification")
    with pytest.warns(WeightsWarning) as record:
        variables, report = import_with_report(objective, state, MAE)
    assert len(record) == 4
    assert set(report.random) == {"params/norm", "params/head"}
    assert report.unused["this objective does without"] == ["norm.weight", "norm.bias"]
    assert "decoder_pred.bias" in report.unused["this objective has no decoder"]
    # The table becomes a parameter, with the file's values.
    np.testing.assert_array_equal(variables["params"]["encoder"]["position"]["table"], state["pos_embed"][0])
    assert variables["params"]["head"]["kernel"].std() < 1e-4  # as the task initialises it


def test_a_classifiers_head_is_not_taken_for_the_pixel_head_nor_the_other_way(tiny, checkpoint):
    model = dict(position="learned", layer_scale=None, relative_bias=False, qkv_bias="all")
    classifier, simmim = tiny("classification", model=model), tiny("simmim", model=model)
    state = checkpoint(classifier, MAE) | {"norm.weight": np.ones(16), "norm.bias": np.zeros(16)}
    with pytest.warns(WeightsWarning) as record:
        _, report = import_with_report(simmim, state, MAE)
    assert set(report.random) == {"params/head", "params/encoder/mask_token"}
    assert "head.weight" in report.unused["a classifier has no use in pre-training"]
    with pytest.warns(WeightsWarning) as record:
        _, report = import_with_report(classifier, checkpoint(simmim, "transformers/vit_mim"), "transformers/vit_mim")
    assert set(report.random) == {"params/head", "params/norm"}
    assert "decoder.0.weight" in report.unused["the pixel head has no use downstream"]
    assert "vit.embeddings.mask_token" in report.unused["this objective does without"]
    assert len(record) == 4


def test_simmim_starts_a_classifier_with_its_relative_positions(tiny, checkpoint, random_variables):
    model = dict(position="none", relative_bias=True, qkv_bias="qv", layer_scale=0.1)
    simmim, classifier = tiny("simmim"), tiny("classification", model=model)
    with pytest.warns(WeightsWarning):
        variables, report = import_with_report(classifier, checkpoint(simmim, "microsoft/simmim"), "microsoft/SimMIM")
    theirs = random_variables(simmim)["params"]["encoder"]
    for name in ("relative_bias", "stack", "patch_embed", "class_token"):
        jax.tree.map(np.testing.assert_array_equal, variables["params"]["encoder"][name], theirs[name])
    assert report.unused["this objective does without"] == [
        "encoder.norm.weight",
        "encoder.norm.bias",
        "encoder.mask_token",
    ]


def test_a_head_of_other_channels_is_refused(tiny, checkpoint):
    state = checkpoint(tiny("simmim"), "microsoft/simmim")
    grey = tiny("simmim", channels=2)
    with pytest.raises(
        WeightsError, match=r"shape \(48, 16, 1, 1\) where \(32, 16, 1, 1\) is expected: decoder\.0\.weight"
    ):
        mim_jax.import_weights(grey, state, "microsoft/simmim")


def test_only_the_parts_asked_for_are_taken(mae, state):
    variables, report = import_with_report(mae, state, MAE, parts=("encoder",))
    assert set(report.loaded) == {"params/encoder"}
    assert "decoder_pred.weight" in report.ignored
    assert not report.warnings()  # it was asked for
    assert variables["params"]["decoder"]["prediction"]["bias"].sum() == 0.0  # as initialised, not as in the source
    assert state["decoder_pred.bias"].sum() != 0.0
    with pytest.raises(WeightsError, match="no part backbone in this objective; it has decoder, encoder"):
        mim_jax.import_weights(mae, state, MAE, parts=("backbone",))


def test_an_average_of_the_parameters_starts_as_a_copy(tiny, checkpoint):
    plain, averaged = tiny("classification"), tiny("classification", ema_decay=0.99)
    with pytest.warns(WeightsWarning, match="was copied from params/"):
        variables, report = import_with_report(averaged, checkpoint(plain, MAE), MAE)
    assert report.copied == {f"teacher/{part}": f"params/{part}" for part in ("encoder", "head", "norm")}
    jax.tree.map(np.testing.assert_array_equal, variables["teacher"], variables["params"])


@pytest.mark.parametrize("wrapped", ["module.module.", "module._orig_mod.", "_orig_mod.", "module."])
def test_names_may_be_wrapped_more_than_once(mae, state, wrapped):
    """A compiled or parallel model inside a parallel one, or in a container called like its wrapper."""
    inside = mim_jax.import_weights(mae, {f"{wrapped}{name}": tensor for name, tensor in state.items()}, MAE)
    jax.tree.map(np.testing.assert_array_equal, inside, mim_jax.import_weights(mae, state, MAE))


def test_leaves_do_not_share_memory(tiny, checkpoint):
    # Otherwise the first donating step would fail, or write into the arrays of the source.
    objective = tiny("ijepa")
    state = checkpoint(objective, "facebookresearch/ijepa")
    with pytest.warns(WeightsWarning):
        encoder = {name: tensor for name, tensor in state.items() if name.startswith("target_encoder.")}
        variables = mim_jax.import_weights(objective, encoder, "facebookresearch/ijepa")
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(variables)]
    pointers += [tensor.__array_interface__["data"][0] for tensor in state.values()]
    assert len(set(pointers)) == len(pointers)


def test_position_tables_are_resized_only_when_asked_and_as_pytorch_does(tiny, checkpoint):
    model = dict(position="learned")
    small, large = tiny("classification", model=model), tiny("classification", model=model, image_size=(24, 28))
    state = checkpoint(small, MAE)
    with pytest.raises(
        WeightsError, match=r"position table of a 4x4 grid where the model has 6x7; pass resize_positions"
    ):
        mim_jax.import_weights(large, state, MAE)
    variables, report = import_with_report(large, state, MAE, resize_positions=True)
    assert report.resized == ["pos_embed from 4x4 to 6x7"]
    table = torch.from_numpy(state["pos_embed"])
    grid = table[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(6, 7), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    expected = torch.cat([table[0, :1], grid.reshape(42, -1)])
    np.testing.assert_allclose(variables["params"]["encoder"]["position"]["table"], expected.numpy(), atol=3e-6)


def test_a_fixed_table_of_another_grid_is_computed_anew_when_asked(tiny, checkpoint):
    state, large = checkpoint(tiny("mae"), MAE), tiny("mae", image_size=24)
    with pytest.raises(WeightsError, match=r"pass resize_positions=True.*: pos_embed, decoder_pos_embed"):
        mim_jax.import_weights(large, state, MAE)
    _, report = import_with_report(large, state, MAE, resize_positions=True)
    assert [text.split(":")[0] for text in report.resized] == [
        "pos_embed from 4x4 to 6x6",
        "decoder_pos_embed from 4x4 to 6x6",
    ]
    state["pos_embed"] = np.roll(state["pos_embed"], 1, axis=-1)
    with pytest.raises(WeightsError, match="differs by"):
        mim_jax.import_weights(large, state, MAE, resize_positions=True)


def test_a_config_that_means_another_model_is_refused(mae, random_variables, tmp_path, tiny):
    mim_jax.export_weights(mae, random_variables(mae), tmp_path, "transformers/vit_mae")
    # Shapes do not tell the number of heads.
    other = tiny("mae", model=dict(heads=2))
    with pytest.raises(
        WeightsError, match=r"another architecture: config\.json says num_attention_heads=4, this.* has 2"
    ):
        mim_jax.import_weights(other, tmp_path, "transformers/vit_mae")
    with pytest.raises(WeightsError, match="num_attention_heads=4"):
        mim_jax.import_weights(other, tmp_path / "model.safetensors", "transformers/vit_mae")
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("1e-06", "1e-12"))
    _, report = import_with_report(mae, tmp_path, "transformers/vit_mae")
    assert report.notes == ["config.json says layer_norm_eps=1e-12, this objective has 1e-06"]


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("mae", MAE),
        ("mae", "transformers/vit_mae"),
        ("simmim", "microsoft/simmim"),
        ("ijepa", "facebookresearch/ijepa"),
        ("classification", MAE),
        ("classification", "timm/vit"),
        ("linear_probe", MAE),
    ],
)
def test_what_is_exported_is_imported_bit_by_bit(tiny, random_variables, name, layout):
    objective = tiny(name)
    variables = random_variables(objective)
    full_name, context, bound = find_layout(objective, layout)
    again = mim_jax.import_weights(objective, to_tensors(context, bound, full_name, variables), layout, strict=True)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(again))
