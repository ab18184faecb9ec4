"""Any key misspelt, any value of the wrong type: refused with one sentence that helps, and nothing silently ignored.

The rule for a key with one slip (a letter dropped, added or replaced, two neighbours swapped): the message names the
original, and beside it at most keys of the same section that are one slip away as well.
"""

from __future__ import annotations

import functools
import re
import string

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict, FieldReference

import mim_jax
from mim_jax.config import objective_names
from mim_jax.errors import ConfigError
from tests.processes import command, run

OBJECTIVES = [(kind, name) for kind in ("method", "task") for name in objective_names(kind)]
LETTERS = string.ascii_lowercase + string.digits + "_"
GUESSES = re.compile(r"^There is no config key '(.*?)'; did you mean '(.*)'\?$")


@functools.cache
def defaults(kind: str, name: str) -> ConfigDict:
    return mim_jax.default_config(**{kind: name})


@functools.cache
def keys_of(kind: str, name: str) -> tuple[str, ...]:
    """Every dotted name, sections included."""

    def walk(config: ConfigDict, prefix: str):
        for key, value in config.items():
            yield prefix + key
            if isinstance(value, ConfigDict):
                yield from walk(value, f"{prefix}{key}.")

    return tuple(walk(defaults(kind, name), ""))


def slips(word: str) -> set[str]:
    """All words one slip away."""
    parts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    dropped = {a + b[1:] for a, b in parts if b}
    swapped = {a + b[1] + b[0] + b[2:] for a, b in parts if len(b) > 1}
    replaced = {a + c + b[1:] for a, b in parts if b for c in LETTERS}
    added = {a + c + b for a, b in parts for c in LETTERS}
    return (dropped | swapped | replaced | added) - {word}


def nested(name: str, value: object) -> dict:
    """`value` below the keys of a dotted name, as a plain dict."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def assert_named(message: str, wrong: str, right: str, keys: tuple[str, ...]) -> None:
    section, _, word = wrong.rpartition(".")
    near = {key for key in keys if key.rpartition(".")[0] == section and key.rpartition(".")[2] in slips(word)}
    found = GUESSES.match(message)
    assert found, message
    named = set(found[2].split("' or '"))
    assert found[1] == wrong
    assert named <= near, message
    assert right in named or len(named) == 3, message  # of many keys as near, three are named


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> dict[tuple[str, str], str]:
    """A config file for every method and task."""
    folder = tmp_path_factory.mktemp("recipes")
    files = {}
    for kind, name in OBJECTIVES:
        file = folder / f"{name}.py"
        file.write_text(
            f"import mim_jax\n\ndef get_config(arg=None):\n    return mim_jax.default_config({kind}={name!r})\n"
        )
        files[kind, name] = str(file)
    return files


def refusal(how: str, recipes: dict, objective: tuple[str, str], name: str, value: object) -> str:
    with pytest.raises(ConfigError) as error:
        if how == "override":
            mim_jax.load_config(recipes[objective], {name: value})
        else:
            mim_jax.create({objective[0]: objective[1], **nested(name, value)})
    return str(error.value)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_slip_in_any_key_is_refused_and_the_key_named(recipes: dict, data: st.DataObject):
    objective = data.draw(st.sampled_from(OBJECTIVES))
    keys = keys_of(*objective)
    right = data.draw(st.sampled_from(keys))
    section, dot, word = right.rpartition(".")
    wrong = section + dot + data.draw(st.sampled_from(sorted(slips(word))))
    assume(wrong not in keys)
    message = refusal(data.draw(st.sampled_from(["override", "create"])), recipes, objective, wrong, 1)
    assert_named(message, wrong, right, keys)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda pair: pair[1])
def test_every_single_key_with_one_slip(recipes: dict, objective: tuple[str, str]):
    keys = keys_of(*objective)
    for number, right in enumerate(keys):
        section, dot, word = right.rpartition(".")
        edits = [section + dot + edit for edit in sorted(slips(word))]
        wrong = next(w for w in edits[number % len(edits) :] + edits if w not in keys)
        assert_named(refusal("create", recipes, objective, wrong, 1), wrong, right, keys)


def wrong_values(config: ConfigDict, name: str) -> list[object]:
    """Values of every type the key does not take."""
    section, _, key = name.rpartition(".")
    parent = config[section] if section else config
    right = [parent.get_type(key)]
    right += [int] if right == [float] else []
    if key in ("image_size", "patch_size", "mask_patch_size"):
        right = [int]
    if isinstance(dict(parent.items(preserve_field_references=True))[key], FieldReference):
        right.append(type(None))
    return [v for v in (True, 3, 2.5, "text", None, (True, "text"), {"a": 1}) if type(v) not in right]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_value_of_the_wrong_type_is_refused_by_key_and_both_types(recipes: dict, data: st.DataObject):
    objective = data.draw(st.sampled_from(OBJECTIVES))
    config = defaults(*objective)
    leaves = [k for k in keys_of(*objective) if not isinstance(config[k], ConfigDict) and k not in ("method", "task")]
    name = data.draw(st.sampled_from(leaves))
    value = data.draw(st.sampled_from(wrong_values(config, name)))
    message = refusal(data.draw(st.sampled_from(["override", "create"])), recipes, objective, name, value)
    section, _, key = name.rpartition(".")
    expected = (config[section] if section else config).get_type(key).__name__
    given = f"not {type(value).__name__} ({value!r})."
    assert message.startswith(f"{name} must be of type {expected}") and message.endswith(given), message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.depth", True, "model.depth must be of type int, not bool (True)."),
        ("image_size", (True, 32), "image_size must be of type int or a pair of ints, not tuple ((True, 32))."),
        ("image_size", (32, 32, 32), "image_size must be of type int or a pair of ints, not tuple ((32, 32, 32))."),
        ("optimizer.clip_norm", "1", "optimizer.clip_norm must be of type float or None, not str ('1')."),
        ("evaluation.knn.k", (5, True), "evaluation.knn.k[1] must be of type int, not bool (True)."),
        ("data.crop_scale", ("0.2", 1), "data.crop_scale[0] must be of type float, not str ('0.2')."),
        ("model.depth.x", 1, "model.depth must be of type int, not dict ({'x': 1})."),
    ],
)
def test_types_that_python_would_let_pass(recipes: dict, name: str, value: object, message: str):
    for how in ("override", "create"):
        assert refusal(how, recipes, ("method", "mae"), name, value) == message


def test_a_dotted_key_in_a_plain_dict_is_not_ignored():
    with pytest.raises(ConfigError, match=r"'model\.depth' in a dict; write sections as dicts within dicts"):
        mim_jax.create({"method": "mae", "model.depth": 2})


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.optimizer.wieght_decay=0.1", "'optimizer.wieght_decay'; did you mean 'optimizer.weight_decay'?"),
        ("--config.model.depth", "model.depth must be of type int, not bool (True)."),
    ],
)
def test_the_command_line_refuses_before_it_makes_a_directory(tmp_path, flag: str, message: str):
    code, output = run(command(tmp_path / "run", {}, flag))
    assert code == 2, output
    assert output.startswith("error: ") and message in output and output.count("\n") == 1
    assert not (tmp_path / "run").exists()
