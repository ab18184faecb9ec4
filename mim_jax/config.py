"""Configs: complete typed defaults, loading of config files, and refusal of everything misspelt.

A config file starts from `default_config(method=...)`, which holds every key a run reads, so a misspelt key fails
where it is written. `resolve` does the same for plain dicts.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import json
import pathlib
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference, FrozenConfigDict

from mim_jax import regularization
from mim_jax.contract import Objective
from mim_jax.errors import ConfigError
from mim_jax.fields import NamedSections

# Sizes that may be one number or a (height, width) pair.
_NUMBER_OR_PAIR = ("image_size", "patch_size", "mask_patch_size")
_MAX_GUESSES = 3  # keys named in answer to an unknown one


def objective_names(kind: str) -> list[str]:
    """Names of all methods (`kind="method"`) or tasks (`kind="task"`), which are the names of their modules."""
    package = importlib.import_module(f"mim_jax.{kind}s")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def objective_class(*, method: str | None = None, task: str | None = None) -> type[Objective]:
    """The one `Objective` subclass defined in `mim_jax/methods/<method>.py` or `mim_jax/tasks/<task>.py`.

    Raises:
      ConfigError: not exactly one of the two is given, or there is no such module.
    """
    if bool(method) == bool(task):
        raise ConfigError(f"A config names either a method or a task; it has method={method!r} and task={task!r}.")
    kind, name = ("method", method) if method else ("task", task)
    names = objective_names(kind)
    if name not in names:
        raise ConfigError(f"There is no {kind} {name!r}{_nearest(name, names)} Known: {', '.join(names)}.")
    module = importlib.import_module(f"mim_jax.{kind}s.{name}")
    found = [
        value
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, Objective)
        and value.__module__ == module.__name__
        and not key.startswith("_")
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one public Objective subclass, not {len(found)}.")
    return found[0]


def default_config(*, method: str | None = None, task: str | None = None, backbone: str | None = None) -> ConfigDict:
    """Every key a run of this method or task reads, typed and locked, with its default.

    The section `model` is that of the method's own backbone, or of another one that it works with.

    Raises:
      ConfigError: there is no such method, task or backbone, or the method cannot work with that backbone.
    """
    from mim_jax import data, evaluation, training
    from mim_jax.layers.compute import Compute
    from mim_jax.models import backbone as backbones

    cls = objective_class(method=method, task=task)
    own = cls.default_config()
    if backbone is not None and backbone != own.model.backbone:
        backbones.check(method or task, cls.encoder_needs, backbone)
        own.model = backbones.section_of(backbone, own.model)
    config = ConfigDict(dict(method=method or "", task=task or "", seed=0, image_size=224, channels=3))
    sections = (
        training.default_config(),
        ConfigDict(dict(compute=Compute.default_config(), data=data.default_config())),
        ConfigDict(dict(evaluation=evaluation.default_config())),
        ConfigDict(dict(regularizer=regularization.default_config()) if method else {}),
        own,
    )
    for section in sections:
        for key, value in section.items(preserve_field_references=True):
            config[key] = value
    return config.lock()


def resolve(config: ConfigDict | Mapping[str, Any]) -> ConfigDict:
    """A complete config: the given keys over the defaults of its method or task.

    Raises:
      ConfigError: a key is unknown (the nearest one is named) or has a value of the wrong type.
    """
    given = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    method, task = given.get("method") or None, given.get("task") or None
    model = given.get("model")
    model = model if isinstance(model, Mapping) else {}
    complete = default_config(method=method, task=task, backbone=model.get("backbone") or None)
    foreign = set(model) - set(complete.model)
    if foreign and foreign & set(objective_class(method=method, task=task).default_config().model):
        raise ConfigError(
            f"model.backbone is {model['backbone']!r} in a section made for another (model.{min(foreign)} is no key of "
            f"it); start from default_config({f'method={method!r}' if method else f'task={task!r}'}, "
            f"backbone={model['backbone']!r})."
        )
    _merge(complete, given)
    return complete


def create(config: ConfigDict | Mapping[str, Any]) -> Objective:
    """The objective a config describes; raises ConfigError before anything is compiled if it cannot be built."""
    config = resolve(config)
    cls = objective_class(method=config.method or None, task=config.task or None)
    if config.method:
        cls = regularization.regularized(cls, config.regularizer)
    return cls(FrozenConfigDict(config))


def load_config(path: str, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """Runs `get_config(arg)` of a config file and applies overrides.

    Args:
      path: a Python file, optionally followed by `:arg`; or a run's `config.json`.
      overrides: values by dotted name, `{"model.depth": 2}`.

    Raises:
      ConfigError: the file is missing or broken, or an override names no key or has the wrong type.
    """
    file, _, arg = str(path).partition(":")
    if not pathlib.Path(file).is_file():
        raise ConfigError(f"There is no config file {file!r}.")
    config = resolve(_read_json(file)) if file.endswith(".json") else _run_config_file(file, arg)
    for name, value in (overrides or {}).items():
        override(config, name, value)
    return config


def override(config: ConfigDict, name: str, value: Any) -> None:
    """Sets the key of dotted `name`; raises ConfigError naming the nearest key if there is none."""
    nested = value
    for part in reversed(name.split(".")):
        nested = {part: nested}
    _merge(config, nested)


def parse_value(config: ConfigDict, name: str, text: str) -> Any:
    """What a command line's `--config.<name>=<text>` stands for: a Python literal, or the text itself for strings."""
    section, _, key = name.rpartition(".")
    with contextlib.suppress(KeyError, AttributeError):
        parent = config[section] if section else config
        if isinstance(parent, ConfigDict) and parent.get_type(key) is str and text != "None":
            return text
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def _read_json(file: str) -> dict[str, Any]:
    try:
        content = json.loads(pathlib.Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"Config file {file!r} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"Config file {file!r} must hold an object, not {type(content).__name__}.")
    return content


def _run_config_file(file: str, arg: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(f"_mim_jax_config_{pathlib.Path(file).stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        with _configs_importable_from(file):
            spec.loader.exec_module(module)
            return resolve(module.get_config(arg) if arg else module.get_config())
    except (AttributeError, KeyError, TypeError, NameError, SyntaxError, ImportError) as error:
        raise ConfigError(f"Config file {file!r} cannot be read: {error}") from error


@contextlib.contextmanager
def _configs_importable_from(file: str) -> Iterator[None]:
    """Makes `from configs import common` work inside `file` from any working directory."""
    folder = str(pathlib.Path(file).resolve().parent.parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _merge(config: ConfigDict, given: Mapping[str, Any], prefix: str = "", root: ConfigDict | None = None) -> None:
    root = config if root is None else root
    for key, value in given.items():
        name = f"{prefix}{key}"
        if "." in str(key):
            raise ConfigError(f"There is no config key {name!r} in a dict; write sections as dicts within dicts.")
        if key not in config and isinstance(config, NamedSections) and isinstance(value, Mapping | ConfigDict):
            config.add(key)
        if key not in config:
            raise ConfigError(f"There is no config key {name!r}{_nearest(name, _names(root))}")
        if isinstance(config[key], ConfigDict):
            if not isinstance(value, Mapping | ConfigDict):
                inner = ", ".join(_names(config[key], f"{name}."))
                raise ConfigError(f"{name} is a section{f'; set one of {inner}' if inner else ' without keys'}.")
            _merge(config[key], value, f"{name}.", root)
        else:
            _assign(config, key, name, value)


def _assign(config: ConfigDict, key: str, name: str, value: Any) -> None:
    if isinstance(value, list):
        value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    # Keys that may be switched off are field references with a type of their own (see mim_jax/fields.py).
    may_be_none = isinstance(dict(config.items(preserve_field_references=True))[key], FieldReference)
    if value is None and may_be_none:
        config[key] = None
        return
    if key in _NUMBER_OR_PAIR:
        kinds = [type(v) for v in value] if isinstance(value, tuple) else [type(value)]
        if kinds != ([int, int] if isinstance(value, tuple) else [int]):
            raise _wrong_type(name, "int or a pair of ints", value)
        with config.ignore_type():
            config[key] = value
        return
    expected = config.get_type(key)
    if not _fits(value, expected):
        raise _wrong_type(name, f"{expected.__name__}{' or None' if may_be_none else ''}", value)
    if expected is tuple and config[key]:  # what stands there shows what belongs there
        inner = type(config[key][0])
        for number, item in enumerate(value):
            if not _fits(item, inner):
                raise _wrong_type(f"{name}[{number}]", inner.__name__, item)
        value = tuple(inner(item) for item in value)
    config[key] = expected(value)


def _fits(value: Any, expected: type) -> bool:
    """Whether a value is of a type, or an int where a float is expected; a bool is no int."""
    return type(value) is expected or (expected is float and type(value) is int)


def _wrong_type(name: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"{name} must be of type {expected}, not {type(value).__name__} ({value!r}).")


def _names(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for key in config:
        names.append(f"{prefix}{key}")
        if isinstance(config[key], ConfigDict):
            names += _names(config[key], f"{prefix}{key}.")
    return names


def _nearest(name: str, names: list[str]) -> str:
    """The end of a message about the unknown `name`: all keys that are the fewest slips away, where these are few.

    A slip drops, adds or replaces a letter, or swaps two neighbours; at most a third of the letters, or one, may be
    wrong. Keys of other sections are thought of only if none of the same section is near.
    """
    section, _, key = name.rpartition(".")
    siblings = [n for n in names if n.rpartition(".")[0] == section]
    for candidates in (siblings, names):
        slips = {n: edit_distance(key, n.rpartition(".")[2]) for n in candidates}
        fewest = min(slips.values(), default=len(key) + 1)
        if fewest <= max(1, len(key) // 3):
            close = sorted((n for n in candidates if slips[n] == fewest), key=lambda n: n.count("."))
            return f"; did you mean {' or '.join(repr(n) for n in close[:_MAX_GUESSES])}?"
    return "."


def edit_distance(one: str, other: str) -> int:
    """Fewest letters to drop, add, replace or swap with their neighbour to turn one word into the other.

    The optimal string alignment distance: no letter is touched twice.
    """
    before, row = [], list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(other, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
            if i > 1 and j > 1 and (a, one[i - 2]) == (other[j - 2], b):
                row[j] = min(row[j], last[j - 2] + 1)
    return row[-1]
