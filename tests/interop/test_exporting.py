"""Exported files hold what was trained, whole and contiguous, or the export says what it cannot hold."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import mim_jax
from mim_jax.errors import WeightsError
from mim_jax.interop import WeightsWarning, exporting


def test_transposed_kernels_are_written_as_they_read(tiny, random_variables, tmp_path):
    objective = tiny("mae")
    variables = random_variables(objective)
    path = mim_jax.export_weights(objective, variables, tmp_path / "new" / "folder", "facebookresearch/mae")
    assert path == tmp_path / "new" / "folder" / "model.safetensors"
    tensors, params = load_file(path), variables["params"]
    np.testing.assert_array_equal(tensors["decoder_embed.weight"], params["decoder"]["embed"]["kernel"].T)
    kernel = params["encoder"]["stack"]["blocks"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(tensors["blocks.1.mlp.fc1.weight"], kernel[1].T)
    patch = params["encoder"]["patch_embed"]["projection"]["kernel"].reshape(4, 4, 3, 16)
    np.testing.assert_array_equal(tensors["patch_embed.proj.weight"], patch.transpose(3, 2, 0, 1))
    with safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    assert not (path.parent / "config.json").exists()


def test_transformers_layouts_write_a_config(tiny, random_variables, tmp_path):
    objective = tiny("mae", mask_ratio=0.5)
    mim_jax.export_weights(objective, random_variables(objective), tmp_path, "transformers")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "vit_mae" and config["architectures"] == ["ViTMAEForPreTraining"]
    assert config["num_attention_heads"] == 4 and config["decoder_num_attention_heads"] == 2
    assert config["mask_ratio"] == 0.5 and config["layer_norm_eps"] == 1e-6


def test_parts_a_layout_cannot_hold_are_named(tiny, random_variables, tmp_path):
    objective = tiny("mae")
    with pytest.warns(WeightsWarning, match="Layout 'timm/vit' does not hold params/decoder: not written"):
        path = mim_jax.export_weights(objective, random_variables(objective), tmp_path, "timm/vit")
    assert set(load_file(path)) & {"norm.weight", "decoder_embed.weight"} == {"norm.weight"}


def test_a_part_that_would_compute_something_else_is_refused(tiny, random_variables, tmp_path):
    objective = tiny("simmim")
    with pytest.raises(WeightsError, match=r"no name for params/encoder/relative_bias/table.*compute something else"):
        mim_jax.export_weights(objective, random_variables(objective), tmp_path, "transformers/vit_mim")
    assert not any(tmp_path.iterdir())


def test_variables_of_another_objective_are_refused(tiny, random_variables, tmp_path):
    with pytest.raises(WeightsError, match="not those of the given objective"):
        mim_jax.export_weights(tiny("mae"), random_variables(tiny("simmim")), tmp_path, "facebookresearch/mae")


def test_a_failed_write_leaves_the_old_file(tiny, random_variables, tmp_path, monkeypatch):
    objective = tiny("mae")
    path = mim_jax.export_weights(objective, random_variables(objective, 0), tmp_path, "facebookresearch/mae")
    before = path.read_bytes()

    def half_a_write(path, tensors):
        path.write_bytes(before[:100])
        raise OSError("No space left on device")

    monkeypatch.setattr(exporting, "_save", half_a_write)
    with pytest.raises(OSError, match="No space"):
        mim_jax.export_weights(objective, random_variables(objective, 1), tmp_path, "facebookresearch/mae")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_way_is_refused(tiny, random_variables, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(WeightsError, match="is a file; give a directory"):
        mim_jax.export_weights(tiny("mae"), random_variables(tiny("mae")), tmp_path / "out", "facebookresearch/mae")


def test_arrays_on_several_devices_are_gathered(tiny, random_variables, tmp_path):
    objective = tiny("mae")
    variables = random_variables(objective)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.tree.map(lambda x: jax.device_put(x, everywhere if x.shape[0] % 8 else spread), variables)
    one = mim_jax.export_weights(objective, variables, tmp_path / "one", "facebookresearch/mae")
    eight = mim_jax.export_weights(objective, placed, tmp_path / "eight", "facebookresearch/mae")
    assert one.read_bytes() == eight.read_bytes()
