"""Sections under names that a user chooses, from dicts, config files and the command line; `teachers` of UNIC."""

import pytest
from ml_collections import ConfigDict, FrozenConfigDict

import mim_jax
from mim_jax.cli import apply_overrides
from mim_jax.config import override
from mim_jax.errors import ConfigError
from mim_jax.fields import NamedSections

CLIP = dict(name="clip_vit_b16", weights="clip.pt")


def make(**teachers) -> ConfigDict:
    return mim_jax.resolve(dict(method="unic", teachers=teachers))


def test_a_new_name_starts_as_the_template():
    section = make(clip=CLIP).teachers.clip
    assert (section.name, section.weights, section.depth, section.enabled) == ("clip_vit_b16", "clip.pt", None, True)
    assert sorted(make(clip=CLIP).teachers) == ["clip", "dbot", "deit3", "dino", "ibot"]


def test_of_an_old_name_only_what_is_given_changes():
    section = make(dino=dict(depth=3)).teachers.dino
    assert (section.name, section.depth) == ("dino_vit_b16", 3)


def test_the_command_line_adds_and_takes_out():
    config = make()
    flags = {f"teachers.clip.{key}": text for key, text in CLIP.items()} | {"teachers.dbot.enabled": "False"}
    apply_overrides(config, flags)
    assert config.teachers.clip.to_dict() == make(clip=CLIP).teachers.clip.to_dict()
    assert config.teachers.dbot.enabled is False
    assert mim_jax.resolve(config).to_dict() == config.to_dict()


def test_a_config_file_adds_by_assignment(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(
        "import mim_jax\n\ndef get_config(arg=None):\n    config = mim_jax.default_config(method='unic')\n"
        "    config.teachers.clip = dict(name='clip_vit_b16')\n    config.teachers.clip.weights = 'clip.pt'\n"
        "    return config\n"
    )
    config = mim_jax.load_config(str(file), {"teachers.clip.depth": 2})
    assert config.teachers.clip.to_dict() == make(clip=dict(CLIP, depth=2)).teachers.clip.to_dict()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("teachers.dinoo", 1, "no config key 'teachers.dinoo'; did you mean 'teachers.dino'"),
        ("teachers.clip.wieghts", "x", "no config key 'teachers.clip.wieghts'; did you mean 'teachers.clip.weights'"),
        ("teachers.clip.depth", "x", "teachers.clip.depth must be of type int or None, not str"),
        ("teachers.to_dict.name", "x", "'to_dict' cannot be the name of a section"),
        ("teachers.a-b.name", "x", "'a-b' cannot be the name of a section"),
    ],
)
def test_mistakes_are_refused_by_name(name, value, message):
    with pytest.raises(ConfigError, match=message):
        override(make(), name, value)


def test_sections_of_the_defaults_cannot_be_deleted():
    config = make()
    with pytest.raises(KeyError, match="'dino' cannot be deleted; set its 'enabled' to False"):
        del config.teachers["dino"]


def test_sections_are_locked_and_the_set_of_them_is_not():
    config = make()
    with pytest.raises(KeyError, match="locked"):
        config.teachers.dino["wieghts"] = "x"
    config.teachers.mine = dict(name="vit")
    assert config.teachers.mine.name == "vit"


def test_a_copy_can_be_added_to_as_well():
    copy = make().copy_and_resolve_references()
    override(copy, "teachers.clip.name", "clip_vit_b16")
    assert isinstance(copy.teachers, NamedSections) and copy.teachers.clip.enabled
    assert FrozenConfigDict(copy).teachers.clip.name == "clip_vit_b16"
