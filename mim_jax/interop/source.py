"""Reading weights files without running anything that is in them."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mim_jax.errors import WeightsError

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")
_NUMPY_DTYPES = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
# An archive may grow to this many times its own size, and to this many bytes whatever its size.
_MAX_GROWTH, _HARMLESS_BYTES = 20, 2**30
_MAX_DEPTH, _MAX_MAPPINGS = 32, 100_000  # of nested mappings; a pickle of a few bytes can hold one within itself

# What NumPy, zipfile and PyTorch raise on damaged files, besides their own classes, all of which derive from these.
_DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError)
_DAMAGE += (MemoryError, RuntimeError, SyntaxError, struct.error, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class Source:
    """The raw content of a weights file: tensors by name, possibly in nested mappings."""

    tree: Mapping[str, Any]
    origin: str  # for messages
    config: Mapping[str, Any] | None = None  # of the `config.json` beside the weights


def read_source(source: Any) -> Source:
    """Reads a file, a directory as transformers writes them, or takes a mapping as it is.

    Raises:
      WeightsError: the file is missing, damaged, of an unknown kind, or holds anything but plain tensors.
    """
    if isinstance(source, Mapping):
        return Source(source, "the given mapping")
    path = pathlib.Path(source).expanduser()
    if path.is_dir():
        return Source(_read_directory(path), str(path), _read_json(path / "config.json"))
    if not path.is_file():
        raise WeightsError(f"There is no weights file {str(path)!r}.")
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path} is no weights file by its name; known endings: {', '.join(SUFFIXES)}.")
    return Source(_READERS[path.suffix](path), str(path), _read_json(path.with_name("config.json")))


def select_weights(tree: Mapping[str, Any], containers: tuple[str, ...]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors by dotted name, and the names of everything else.

    Where the top level has one of `containers` as a nested mapping, only these are read: what stands beside them is the
    optimiser and the like. A container of its own ("model") is left out of the names only by a layout's renames.

    Raises:
      WeightsError: two entries have the same name.
    """
    chosen = {key: value for key, value in tree.items() if key in containers and isinstance(value, Mapping)}
    others = [key for key in tree if key not in chosen] if chosen else []
    tensors: dict[str, np.ndarray] = {}
    for name, value in _leaves(chosen or tree):
        if not _is_tensor(value):
            others.append(name)
        elif name in tensors:
            raise WeightsError(f"The weights hold two tensors called {name!r}.")
        else:
            tensors[name] = _as_numpy(name, value)
    return tensors, others


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Everything in nested mappings by its dotted name, in order; raises WeightsError for an endless nest."""
    mappings = 0
    pending = [iter([("", 0, tree)])]
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
            continue
        name, depth, value = entry
        if not isinstance(value, Mapping):
            yield name, value
            continue
        mappings += 1
        if depth > _MAX_DEPTH or mappings > _MAX_MAPPINGS:
            raise WeightsError(f"The weights nest mappings without end, at {name[:80]!r}; keep the state_dict alone.")
        prefix = f"{name}." if name else ""
        pending.append(iter([(f"{prefix}{key}", depth + 1, inner) for key, inner in value.items()]))


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _as_numpy(name: str, value: Any) -> np.ndarray:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    try:  # a torch tensor; torch itself need not be imported to convert it
        value = value.detach().cpu()
        if value.is_floating_point() and str(value.dtype) not in ("torch.float16", "torch.float32", "torch.float64"):
            value = value.float()  # exact for bfloat16 and float8, which numpy does not know
        return value.numpy()
    except (TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"Tensor {name!r} has no plain values ({reason}); save it dense and not quantised."
        ) from error


def _read_directory(path: pathlib.Path) -> dict[str, Any]:
    index = _read_json(path / "model.safetensors.index.json")
    files = ["model.safetensors"] if index is None else _shards(path, index)
    if index is None and not (path / files[0]).is_file():
        if (path / "pytorch_model.bin").is_file():
            return _read_torch(path / "pytorch_model.bin")
        raise WeightsError(f"{path} has neither model.safetensors nor pytorch_model.bin; give the weights file itself.")
    tensors: dict[str, Any] = {}
    for name in files:
        tensors |= _read_safetensors(path / name)
    return tensors


def _shards(path: pathlib.Path, index: Mapping[str, Any]) -> list[str]:
    """The files an index names, all of them in its own directory."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise WeightsError(f"{path} has an index without a weight_map of tensors to files; fetch it again.")
    here = {entry.name for entry in path.iterdir()}
    for name in weight_map.values():
        if not isinstance(name, str) or name not in here:
            raise WeightsError(f"{path} has an index that names {name!r}, which is no file of this directory.")
    return sorted(set(weight_map.values()))


def _read_json(path: pathlib.Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is no JSON ({error}); remove it or fetch it again.") from error
    return content if isinstance(content, Mapping) else None


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as plain, safe_open(path, framework="flax") as extended:
            # numpy has neither bfloat16 nor float8; the flax reader would narrow 64-bit numbers.
            return {
                name: plain.get_tensor(name)
                if plain.get_slice(name).get_dtype() in _NUMPY_DTYPES
                else np.asarray(extended.get_tensor(name))
                for name in plain.offset_keys()
            }
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is no sound safetensors file: {error}.") from error


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    _check_growth(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except _DAMAGE as error:
        raise WeightsError(f"{path} is no npz of plain arrays: {error}.") from error


def _read_torch(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{path} needs PyTorch to be read; install torch, or convert the file to safetensors where it is installed."
        ) from error
    _check_growth(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{path} is a program with its weights (TorchScript), and not run. If you trust it, convert it once: "
                "safetensors.torch.save_file of torch.jit.load(file, map_location='cpu').state_dict()."
            ) from error
        if not isinstance(error, pickle.UnpicklingError):
            raise WeightsError(f"{path} is no sound PyTorch file: {str(error).partition(chr(10))[0]}.") from error
        raise WeightsError(
            f"{path} holds more than tensors, and unpickling it could run anything ({str(error).splitlines()[0]}). If "
            "you trust the file, convert it once: torch.load(file, weights_only=False), then "
            "safetensors.torch.save_file of the state_dict inside."
        ) from error
    except _DAMAGE as error:
        raise WeightsError(f"{path} is no sound PyTorch file: {str(error).partition(chr(10))[0]}.") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state_dict.")
    # A tensor may be one number repeated any number of times.
    tensors = [value for _, value in _leaves(content) if _is_tensor(value)]
    _check_size(path, sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors))
    return content


def _check_growth(path: pathlib.Path) -> None:
    """Refuses archives that unpack to far more than they are; what is no archive passes."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except _DAMAGE as error:
        raise WeightsError(f"{path} is no sound archive: {error}.") from error
    _check_size(path, size)


def _check_size(path: pathlib.Path, size: int) -> None:
    if size > max(_HARMLESS_BYTES, _MAX_GROWTH * path.stat().st_size):
        raise WeightsError(
            f"{path} unpacks from {path.stat().st_size:,} to {size:,} bytes, which no real weights do; if it is sound "
            "all the same, save it again without compression."
        )


_READERS = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
}
