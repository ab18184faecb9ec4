"""Weights files are read without running anything in them, and damaged ones are refused with a sentence."""

import io
import json
import os
import pickle
import struct
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from mim_jax.errors import WeightsError
from mim_jax.interop import source as source_module
from mim_jax.interop.source import read_source, select_weights

TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], np.int64)}


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def same(tree):
    tensors, others = select_weights(tree, ("model",))
    assert tensors.keys() == TENSORS.keys() and not others
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(tensors[name], tensor)


def test_every_format_gives_the_same(tmp_path):
    save_file(TENSORS, tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", **TENSORS)
    torch.save({name: torch.tensor(tensor) for name, tensor in TENSORS.items()}, tmp_path / "w.pth")
    for suffix in ("safetensors", "npz", "pth"):
        same(read_source(tmp_path / f"w.{suffix}").tree)
        same(read_source(str(tmp_path / f"w.{suffix}")).tree)
    same({name: torch.tensor(tensor) for name, tensor in TENSORS.items()})
    same({"a": {"weight": TENSORS["a.weight"]}, "b": TENSORS["b"]})


def test_a_directory_of_shards(tmp_path):
    save_file({"b": TENSORS["b"]}, tmp_path / "one.safetensors")
    save_file({"a.weight": TENSORS["a.weight"]}, tmp_path / "two.safetensors")
    index = {"weight_map": {"b": "one.safetensors", "a.weight": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    source = read_source(tmp_path)
    same(source.tree)
    assert source.config == {"model_type": "vit"}


def test_an_index_cannot_reach_outside_its_directory(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file(TENSORS, tmp_path / "secret.safetensors")
    (inside / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"b": "../secret.safetensors"}}))
    with pytest.raises(WeightsError, match="no file of this directory"):
        read_source(inside)


def test_narrow_floats_are_read_exactly(tmp_path):
    values = torch.tensor([1.0, -0.375, 2.0**100])
    save_torch_file({"x": values.bfloat16()}, tmp_path / "w.safetensors")
    tensors, _ = select_weights(read_source(tmp_path / "w.safetensors").tree, ())
    assert tensors["x"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(tensors["x"].astype(np.float32), values.bfloat16().float().numpy())
    tensors, _ = select_weights({"x": values.bfloat16()}, ())
    np.testing.assert_array_equal(tensors["x"], values.bfloat16().float().numpy())


def test_what_stands_beside_the_weights_is_not_read():
    tree = {"model": {"x": np.ones(2)}, "optimizer": {"state": {0: np.ones(9)}}, "epoch": 3}
    tensors, others = select_weights(tree, ("model",))
    assert list(tensors) == ["model.x"] and others == ["optimizer", "epoch"]


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "npz", "safetensors"])
def test_a_pickle_with_a_payload_is_refused_and_not_run(tmp_path, suffix):
    victim = tmp_path / "made-by-the-payload"
    file = tmp_path / f"w.{suffix}"
    file.write_bytes(pickle.dumps({"a": Payload(victim)}, protocol=2))
    with pytest.raises(WeightsError, match=str(file)):
        read_source(file)
    assert not victim.exists()
    pickle.loads(file.read_bytes())
    assert victim.exists()  # it was a live one


def test_a_torch_archive_with_a_payload_is_refused_and_says_how_to_convert(tmp_path):
    victim, file = tmp_path / "made-by-the-payload", tmp_path / "w.pth"
    torch.save({"model": {"x": torch.ones(2)}, "args": Payload(victim)}, file)
    with pytest.raises(WeightsError, match=r"convert it once.*safetensors"):
        read_source(file)
    assert not victim.exists()


def test_an_npz_of_objects_is_refused_and_not_run(tmp_path):
    victim, file = tmp_path / "made-by-the-payload", tmp_path / "w.npz"
    np.savez(file, x=np.array([Payload(victim)], dtype=object))
    with pytest.raises(WeightsError, match="no npz of plain arrays"):
        read_source(file)
    assert not victim.exists()


@pytest.mark.parametrize("suffix", ["npz", "pth"])
def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(source_module, "_HARMLESS_BYTES", 2**20)  # a real one takes seconds to make
    file = tmp_path / f"w.{suffix}"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(2**23))
    with pytest.raises(WeightsError, match="unpacks from"):
        read_source(file)


def test_an_array_that_claims_a_petabyte_is_refused(tmp_path):
    file = tmp_path / "w.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**48,)})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64))
    with pytest.raises(WeightsError, match="no npz of plain arrays"):
        read_source(file)


@pytest.mark.parametrize("suffix", ["npz", "pth", "safetensors"])
@pytest.mark.parametrize("keep", [0, 20, 0.5])
def test_a_truncated_file_is_refused(tmp_path, suffix, keep):
    file = tmp_path / f"w.{suffix}"
    big = {"x": np.random.default_rng(0).normal(size=5000).astype(np.float32)}
    {"npz": lambda: np.savez(file, **big), "safetensors": lambda: save_file(big, file)}.get(
        suffix, lambda: torch.save({"x": torch.tensor(big["x"])}, file)
    )()
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep) if keep < 1 else keep])
    with pytest.raises(WeightsError, match=str(file)):
        read_source(file)


def test_a_safetensors_header_that_lies_is_refused(tmp_path):
    file = tmp_path / "w.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(WeightsError, match="no sound safetensors file"):
        read_source(file)
    file.write_bytes(struct.pack("<Q", 2**60) + header)
    with pytest.raises(WeightsError, match="no sound safetensors file"):
        read_source(file)


def test_files_that_are_not_there_or_not_weights(tmp_path):
    with pytest.raises(WeightsError, match="no weights file"):
        read_source(tmp_path / "missing.pth")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsError, match=r"known endings: \.safetensors"):
        read_source(tmp_path / "notes.txt")
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor"):
        read_source(tmp_path)
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds a list, not a state_dict"):
        read_source(tmp_path / "list.pth")


def test_without_torch_a_torch_file_says_what_to_do(tmp_path, monkeypatch):
    torch.save({"x": torch.ones(2)}, tmp_path / "w.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(WeightsError, match="install torch, or convert"):
        read_source(tmp_path / "w.pth")
