"""Weights files from strangers: nothing in them runs, and what does not fit or is damaged is refused by name."""

from __future__ import annotations

import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import mim_jax
from mim_jax.errors import WeightsError
from mim_jax.interop import WeightsWarning, import_with_report
from mim_jax.interop.exporting import to_tensors
from mim_jax.interop.layout import find_layout
from mim_jax.interop.source import read_source
from tests.tiny import ROOT, tiny_config

LAYOUT = "facebookresearch/mae"


@pytest.fixture(scope="module")
def objective():
    return mim_jax.create(tiny_config("mae", {"model.depth": 1, "decoder.depth": 1}))


@pytest.fixture(scope="module")
def sound(objective):
    """Random weights under the names of the official code."""
    shapes = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    name, context, bound = find_layout(objective, LAYOUT)
    return to_tensors(context, bound, name, variables)


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, marker: pathlib.Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def with_payload(kind: str, folder: pathlib.Path, marker: pathlib.Path) -> pathlib.Path:
    content = {"model": {"norm.bias": torch.ones(2)}, "args": Payload(marker)}
    name, _, form = kind.partition(" ")
    file = folder / f"w{name}"
    if form == "zip":
        torch.save(content, file)
    elif form == "legacy":
        torch.save(content, file, _use_new_zipfile_serialization=False)
    elif form == "objects":
        np.savez(file, x=np.array([Payload(marker)], dtype=object))
    else:
        file.write_bytes(pickle.dumps(content["args"], protocol=2))
    return file


HOSTILE = [".pth zip", ".pth legacy", ".pt zip", ".bin zip", ".bin legacy", ".npz objects"]
HOSTILE += [f"{name} pickle" for name in (".pth", ".bin", ".npz", ".safetensors")]


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_payload_does_not_run(objective, tmp_path, kind):
    marker = tmp_path / "the payload ran"
    file = with_payload(kind, tmp_path, marker)
    with pytest.raises(WeightsError, match=f"^{file} "):
        mim_jax.import_weights(objective, file, LAYOUT)
    assert not marker.exists()


def test_the_payload_is_a_live_one(tmp_path):
    marker = tmp_path / "the payload ran"
    torch.load(with_payload(".pth zip", tmp_path, marker), weights_only=False)
    assert marker.exists()


ATTACK = """
import pathlib, sys
import mim_jax
from mim_jax.errors import WeightsError
from tests.tiny import tiny_config

objective = mim_jax.create(tiny_config("mae"))
for file in sorted(pathlib.Path(sys.argv[1]).rglob("w.*")):
    try:
        mim_jax.import_weights(objective, file, "facebookresearch/mae")
    except WeightsError as error:
        print("refused", error)
"""


def test_a_payload_does_not_run_in_a_process_of_its_own_either(tmp_path):
    markers = []
    for number, kind in enumerate(HOSTILE):
        folder = tmp_path / str(number)
        folder.mkdir()
        markers.append(folder / "marker")
        with_payload(kind, folder, markers[-1])
    process = subprocess.run(
        [sys.executable, "-c", ATTACK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.count("refused") == len(HOSTILE)
    assert not any(marker.exists() for marker in markers)


def with_changes(tensors: dict[str, np.ndarray], changes: dict[str, np.ndarray | None]) -> dict[str, np.ndarray]:
    return {name: value for name, value in {**tensors, **changes}.items() if value is not None}


def test_every_mismatch_is_listed(objective, sound, tmp_path):
    changed = with_changes(
        sound,
        {
            "norm.bias": None,
            "blocks.0.mlp.fc1.weight": None,
            "blocks.0.attn.proj.weight": sound["blocks.0.attn.proj.weight"][:, :8],
            "decoder_embed.bias": np.full_like(sound["decoder_embed.bias"], np.nan),
            "decoder_norm.weight": np.where(np.arange(16) == 3, np.float32(np.inf), sound["decoder_norm.weight"]),
            "blocks.7.norm1.weight": sound["norm.weight"],
            "surprise": sound["norm.weight"],
        },
    )
    save_file(changed, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        mim_jax.import_weights(objective, tmp_path / "w.safetensors", LAYOUT)
    message = str(caught.value)
    for part in (
        "missing from the source: ",
        "norm.bias",
        "blocks.0.mlp.fc1.weight",
        "shape (16, 8) where (16, 16) is expected: blocks.0.attn.proj.weight",
        "not finite (NaN or infinity; pass allow_nonfinite=True to load them all the same): ",
        "decoder_embed.bias",
        "decoder_norm.weight",
        "left over in the source: surprise",
        "deeper than this model (see model.depth): blocks.7.norm1.weight",
    ):
        assert part in message, message


def test_numbers_that_are_not_finite_are_loaded_when_asked_for(objective, sound, tmp_path):
    weight = np.where(np.arange(16) == 3, np.float32(np.nan), sound["norm.weight"])
    np.savez(tmp_path / "w.npz", **{**sound, "norm.weight": weight})
    with pytest.raises(WeightsError, match=r"not finite .*: norm\.weight$"):
        mim_jax.import_weights(objective, tmp_path / "w.npz", LAYOUT)
    with pytest.warns(WeightsWarning, match=r"loaded though not finite: norm\.weight"):
        variables, report = import_with_report(objective, tmp_path / "w.npz", LAYOUT, allow_nonfinite=True)
    np.testing.assert_array_equal(variables["params"]["encoder"]["norm"]["scale"], weight)
    assert "not finite: norm.weight" in str(report)


def test_the_wrong_layout_is_told_the_right_one(objective, sound, tmp_path):
    save_file(sound, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=f"holds nothing that layout .* it looks like layout '{LAYOUT}'"):
        mim_jax.import_weights(objective, tmp_path / "w.safetensors", "transformers/vit_mae")
    with pytest.raises(WeightsError, match="no weights layout 'facebookresearch/mea' .did you mean"):
        mim_jax.import_weights(objective, tmp_path / "w.safetensors", "facebookresearch/mea")


def test_weights_are_loaded_in_part_only_when_asked_or_told(objective, sound, tmp_path):
    encoder = {name: value for name, value in sound.items() if not name.startswith(("decoder", "mask_token"))}
    save_file(encoder, tmp_path / "encoder.safetensors")
    with pytest.warns(WeightsWarning, match="params/decoder is not in the source: left random"):
        mim_jax.import_weights(objective, tmp_path / "encoder.safetensors", LAYOUT)
    with pytest.raises(WeightsError, match="params/decoder is not in the source: left random"):
        mim_jax.import_weights(objective, tmp_path / "encoder.safetensors", LAYOUT, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mim_jax.import_weights(objective, tmp_path / "encoder.safetensors", LAYOUT, parts=("encoder",))
    del encoder["blocks.0.norm1.bias"]  # a part of which something is missing is never filled up at random
    save_file(encoder, tmp_path / "less.safetensors")
    with pytest.raises(WeightsError, match=r"missing from the source: blocks\.0\.norm1\.bias"):
        mim_jax.import_weights(objective, tmp_path / "less.safetensors", LAYOUT, parts=("encoder",))


def safetensors(header: bytes, body: bytes = b"", announced: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if announced is None else announced) + header + body


def entries(**offsets: tuple[int, int]) -> bytes:
    return json.dumps(
        {name: dict(dtype="F32", shape=[2], data_offsets=pair) for name, pair in offsets.items()}
    ).encode()


def zipped(content: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in content.items():
            archive.writestr(name, body)
    return file.getvalue()


def saved(content: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def nested_in_itself() -> dict:
    tree: dict = {}
    tree["model"] = tree
    return tree


def doubling(levels: int) -> dict:
    tree: dict = {}
    for _ in range(levels):
        tree = {"a": tree, "b": tree}
    return tree


def zip_bomb(name: str) -> bytes:
    """1.1 GiB of zeros in 5 MB."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w") as member,
    ):
        for _ in range(17):
            member.write(bytes(2**26))
    return file.getvalue()


DAMAGED = {
    "header-longer-than-file.safetensors": lambda: safetensors(entries(a=(0, 8)), bytes(8), announced=1000),
    "huge-header.safetensors": lambda: safetensors(entries(a=(0, 8)), bytes(8), announced=2**60),
    "shorter-header.safetensors": lambda: safetensors(entries(a=(0, 8)), bytes(8), announced=20),
    "overlapping.safetensors": lambda: safetensors(entries(a=(0, 8), b=(4, 12)), bytes(12)),
    "outside.safetensors": lambda: safetensors(entries(a=(0, 8), b=(8, 16)), bytes(12)),
    "hole.safetensors": lambda: safetensors(entries(a=(0, 8), b=(12, 20)), bytes(20)),
    "negative.safetensors": lambda: safetensors(entries(a=(-8, 0)), bytes(8)),
    "empty.safetensors": lambda: b"",
    "bomb.npz": lambda: zip_bomb("x.npy"),
    "bomb.pth": lambda: zip_bomb("archive/data/0"),
    "empty.npz": lambda: b"",
    "compression.npz": lambda: zipped({"x.npy": bytes(100)}).replace(b"\x08\0", b"\x63\0"),
    "single.npz": lambda: b"\x93NUMPY\x01\0",
    "empty.pth": lambda: b"",
    "legacy-cut.pth": lambda: saved({"x": torch.ones(900)}, _use_new_zipfile_serialization=False)[:-100],
    "repeated.pth": lambda: saved({"x": torch.ones(1, dtype=torch.bfloat16).expand(2**40)}),
    "sparse.pth": lambda: saved({"norm.bias": torch.eye(3).to_sparse()}),
    "endless.pth": lambda: saved(nested_in_itself()),
    "doubling.pth": lambda: saved(doubling(60)),
}


REASONS = {
    ".safetensors": "is no sound safetensors file",
    ".npz": "is no npz of plain arrays",
    ".pth": "is no sound PyTorch file",
    "bomb.npz": "unpacks from [0-9,]+ to [0-9,]+ bytes",
    "bomb.pth": "unpacks from [0-9,]+ to [0-9,]+ bytes",
    "repeated.pth": "unpacks from [0-9,]+ to 2,199,023,255,552 bytes",
    "sparse.pth": "Tensor 'norm.bias' has no plain values",
    "endless.pth": "nest mappings without end",
    "doubling.pth": "nest mappings without end",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_hostile_file_is_refused(objective, tmp_path, name):
    file = tmp_path / name
    file.write_bytes(DAMAGED[name]())
    with pytest.raises(WeightsError, match=REASONS.get(name, REASONS[file.suffix])) as caught:
        mim_jax.import_weights(objective, file, LAYOUT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["safetensors", "npz", "pth"])
def test_a_file_cut_or_changed_anywhere_is_loaded_or_refused(sound, tmp_path, form):
    """Reading may not notice a changed weight, but whatever it does raise is a sentence that names the file."""
    file = tmp_path / f"w.{form}"
    small = {name: sound[name] for name in ("norm.bias", "norm.weight", "decoder_norm.bias")}
    if form == "pth":
        torch.save({name: torch.tensor(value) for name, value in small.items()}, file)
    else:
        (save_file if form == "safetensors" else lambda tensors, path: np.savez(path, **tensors))(small, file)
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(150):
        damaged = bytearray(content if trial % 3 else content[: rng.integers(len(content))])
        for place in rng.integers(len(damaged) or 1, size=2 if damaged else 0):
            damaged[place] = rng.integers(256)
        file.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, about pickle protocols
            try:
                read_source(file)
            except WeightsError as error:
                assert str(error).startswith(str(file))
