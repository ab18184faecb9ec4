"""Configs: defaults are complete and typed, and whatever is misspelt or of the wrong type is refused by name."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

import mim_jax
from mim_jax.config import objective_class, objective_names, override, parse_value
from mim_jax.errors import ConfigError

# Shared by the tests of refusals, which leave it as it is.
CONFIG = mim_jax.default_config(method="ijepa")


def keys_of(config: ConfigDict, prefix: str = "") -> dict[str, bool]:
    """Every dotted name, and whether it is a section."""
    keys = {}
    for key, value in config.items():
        keys[prefix + key] = isinstance(value, ConfigDict)
        if isinstance(value, ConfigDict):
            keys |= keys_of(value, f"{prefix}{key}.")
    return keys


KEYS = keys_of(CONFIG)
NAMES = list(KEYS)
LEAVES = [name for name, is_section in KEYS.items() if not is_section]
# One or two letters are too little to tell what was meant.
LONG = [name for name in NAMES if len(name.rpartition(".")[2]) >= 4]


@st.composite
def misspelt(draw, names: list[str]) -> tuple[str, str]:
    """One of `names` with a slip in its last part, and the name itself."""
    name = draw(st.sampled_from(names))
    section, dot, key = name.rpartition(".")
    at = draw(st.integers(0, len(key) - 1))
    slips = {
        "drop": key[:at] + key[at + 1 :],
        "swap": key[:at] + key[at : at + 2][::-1] + key[at + 2 :],
        "add": key[:at] + draw(st.sampled_from("aeknostxyz_")) + key[at:],
        "replace": key[:at] + draw(st.sampled_from("aeknostxyz_")) + key[at + 1 :],
    }
    return section + dot + slips[draw(st.sampled_from(sorted(slips)))], name


@settings(max_examples=300, deadline=None, derandomize=True)
@given(misspelt(LONG))
def test_a_slip_in_any_key_is_refused_and_the_key_named(pair: tuple[str, str]):
    wrong, right = pair
    assume(wrong not in NAMES)
    with pytest.raises(ConfigError) as error:
        override(CONFIG, wrong, 1)
    assert str(error.value) == f"There is no config key {wrong!r}; did you mean {right!r}?"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(misspelt([name for name in LONG if KEYS[name]]))
def test_a_slip_in_a_section_is_refused_and_the_section_named(pair: tuple[str, str]):
    wrong, right = pair
    inner = next((name for name in LEAVES if name.startswith(f"{right}.")), None)
    assume(wrong not in NAMES and inner is not None)
    with pytest.raises(ConfigError, match=re.escape(f"{wrong!r}; did you mean {right!r}?")):
        override(CONFIG, wrong + inner.removeprefix(right), 1)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("lr", "'optimizer.lr'"),
        ("width", "'model.width' or 'predictor.width'"),
        ("optimizer.warmup", "'schedule.warmup'"),
        ("model.seed", "'seed' or 'evaluation.reconstruct.seed' or 'evaluation.zero_shot.seed'"),
    ],
)
def test_a_right_key_in_the_wrong_section_is_found(wrong: str, right: str):
    with pytest.raises(ConfigError, match=re.escape(f"did you mean {right}?")):
        override(CONFIG, wrong, 1)


def test_a_key_like_no_other_is_refused_without_a_guess():
    with pytest.raises(ConfigError, match=r"^There is no config key 'qqqqqqqq'\.$"):
        override(CONFIG, "qqqqqqqq", 1)


@pytest.mark.parametrize("name", LEAVES)
def test_a_value_of_the_wrong_type_is_refused_by_name(name: str):
    section, _, key = name.rpartition(".")
    kind = (CONFIG[section] if section else CONFIG).get_type(key)
    wrong = {str: 3, tuple: "1, 2", bool: 1}.get(kind, "text")
    with pytest.raises(ConfigError, match=rf"^{re.escape(name)} must be .*{re.escape(repr(wrong))}"):
        override(CONFIG, name, wrong)


@pytest.mark.parametrize("value", [True, 2.5, None, "2"])
def test_an_int_takes_ints_only(value):
    with pytest.raises(ConfigError, match=r"^model\.depth must be of type int"):
        override(CONFIG, "model.depth", value)


def test_conversions_that_lose_nothing_are_made():
    config = mim_jax.default_config(method="mae")
    for name, value in {"mask_ratio": 1, "image_size": [32, 64], "data.crop_scale": [0.5, 1.0]}.items():
        override(config, name, value)
    assert (config.mask_ratio, type(config.mask_ratio)) == (1.0, float)
    assert (config.image_size, config.data.crop_scale) == ((32, 64), (0.5, 1.0))


def test_optional_fields_take_none_and_their_own_type_again():
    config = mim_jax.default_config(method="mae")
    for value in (5.0, None, 3.0):
        override(config, "optimizer.clip_norm", value)
        assert config.optimizer.clip_norm == value
    with pytest.raises(ConfigError, match=r"^optimizer\.clip_norm must be of type float"):
        override(config, "optimizer.clip_norm", "5")


def test_a_value_for_a_section_is_refused():
    with pytest.raises(ConfigError, match=r"^optimizer is a section; set one of .*optimizer\.lr, "):
        override(CONFIG, "optimizer", "adamw")


@pytest.mark.parametrize("kind", ["method", "task"])
def test_every_objective_has_complete_locked_defaults(kind: str):
    for name in objective_names(kind):
        config = mim_jax.default_config(**{kind: name})
        assert config.is_locked
        assert config[kind] == name
        assert type(mim_jax.create(config)) is objective_class(**{kind: name})


@pytest.mark.parametrize(
    ("given_config", "message"),
    [
        ({"method": "maee"}, r"There is no method 'maee'; did you mean 'mae'\?"),
        ({}, "either a method or a task"),
        ({"method": "mae", "task": "classification"}, "either a method or a task"),
        ({"method": "mae", "model": {"detph": 2}}, r"'model\.detph'; did you mean 'model\.depth'\?"),
        ({"method": "mae", "model": 2}, "model is a section"),
    ],
)
def test_plain_dicts_are_checked_like_configs(given_config: dict, message: str):
    for config in (given_config, ConfigDict(given_config)):
        with pytest.raises(ConfigError, match=message):
            mim_jax.resolve(config)


def test_a_plain_dict_and_a_config_make_the_same_objective():
    changes = {"method": "mae", "image_size": 32, "model": {"depth": 2, "width": 48, "heads": 3}}
    config = mim_jax.default_config(method="mae")
    config.image_size = 32
    config.model.update(depth=2, width=48, heads=3)
    assert mim_jax.create(changes).config.to_dict() == mim_jax.create(config).config.to_dict()


def test_resolve_does_not_touch_what_it_is_given():
    config = mim_jax.default_config(method="mae")
    resolved = mim_jax.resolve(config)
    resolved.model.depth = 3
    assert config.model.depth == 12


@pytest.mark.parametrize("name", objective_names("method"))
def test_json_round_trip(name: str, tmp_path: pathlib.Path):
    config = mim_jax.default_config(method=name)
    override(config, "image_size", (32, 48))
    override(config, "optimizer.lr_reference_batch", None)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    assert mim_jax.load_config(str(file)).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("optimizer.lr", "1e-3", 1e-3),
        ("optimizer.clip_norm", "None", None),
        ("optimizer.name", "lion", "lion"),
        ("duration", "600 steps", "600 steps"),
        ("log.tensorboard", "false", False),
        ("data.crop_scale", "(0.3, 1.0)", (0.3, 1.0)),
        ("image_size", "(32, 64)", (32, 64)),
        ("init_from", "runs/mae", "runs/mae"),
        ("init_from", "None", None),
    ],
)
def test_command_line_text_becomes_the_keys_type(name: str, text: str, value):
    config = mim_jax.default_config(method="mae")
    override(config, name, parse_value(config, name, text))
    section, _, key = name.rpartition(".")
    found = (config[section] if section else config)[key]
    assert (found, type(found)) == (value, type(value))


RECIPE = """
import mim_jax

def get_config(arg=None):
    config = mim_jax.default_config(method="mae")
    config.model.depth = int(arg or 5)
    {line}
    return config
"""


def recipe(folder: pathlib.Path, line: str = "") -> str:
    file = folder / "recipe.py"
    file.write_text(RECIPE.format(line=line))
    return str(file)


def test_a_recipe_takes_an_argument_and_overrides(tmp_path: pathlib.Path):
    file = recipe(tmp_path)
    config = mim_jax.load_config(f"{file}:7", {"model.width": 96, "optimizer.lr": 1})
    assert (config.model.depth, config.model.width, config.optimizer.lr) == (7, 96, 1.0)
    assert mim_jax.load_config(file).model.depth == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.optimiser.lr = 1.0", "optimiser"),
        ("config.model.detph = 2", "detph.*depth"),
        ("config.model.update(detph=2)", "detph"),
        ("config.model.depth = 'two'", "str"),
        ("config.model.depth = no_such_name", "no_such_name"),
        ("import no_such_module", "no_such_module"),
        ("this is no Python", "invalid syntax"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_with_its_name(tmp_path: pathlib.Path, line: str, message: str):
    file = recipe(tmp_path, line)
    with pytest.raises(ConfigError, match=rf"(?s){re.escape(file)}.*{message}"):
        mim_jax.load_config(file)


@pytest.mark.parametrize(("text", "message"), [('{"method": "mae"', "is no JSON"), ("[1, 2]", "must hold an object")])
def test_a_damaged_config_json_is_named(tmp_path: pathlib.Path, text: str, message: str):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(file))}' {message}"):
        mim_jax.load_config(str(file))


def test_a_missing_recipe_is_named():
    with pytest.raises(ConfigError, match=r"There is no config file 'configs/mea\.py'"):
        mim_jax.load_config("configs/mea.py")


def test_a_misspelt_override_is_refused(tmp_path: pathlib.Path):
    with pytest.raises(ConfigError, match=r"'modell\.depth'|'modell'; did you mean 'model'"):
        mim_jax.load_config(recipe(tmp_path), {"modell.depth": 2})
