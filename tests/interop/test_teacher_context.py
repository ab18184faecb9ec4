"""The rules of a teacher's own layout serve under a prefix, whatever the objective that has the teacher."""

import jax
import numpy as np
import pytest

import mim_jax
from mim_jax.contract import Objective
from mim_jax.interop.layout import Layout, make_context
from mim_jax.interop.matching import Matching
from mim_jax.interop.report import Report
from mim_jax.interop.source import read_source
from mim_jax.interop.teacher_blocks import dino_encoder
from mim_jax.models import teachers

STUDENT = dict(method="mae", image_size=16, model=dict(width=16, depth=2, heads=2, patch_size=4))
TEACHER = dict(width=8, depth=3, heads=2, patch_size=4)


class Taught(Objective):
    """Nothing but a teacher."""

    def __init__(self, until):
        super().__init__(mim_jax.resolve(STUDENT))
        section = teachers.section("dino_vit_b16", **TEACHER)
        self.teachers = {"own": teachers.build(section, self.config, until=until)}

    def init(self, rng, batch):
        del batch
        return {"params": {}, "teacher": {"own": self.teachers["own"].init(rng)}}


def read(until, tensors):
    context = make_context(Taught(until))
    own, part = context.of_teacher("own")
    layout = Layout(rules=tuple(dino_encoder("dino.", part, own)))
    report = Report("test", "test")
    matching = Matching(context, layout, context.parts, report, resize_positions=False, allow_nonfinite=False)
    matching.read(read_source(tensors))
    return matching, report


@pytest.fixture(scope="module")
def tensors():
    teacher = Taught(None).teachers["own"]
    variables = teacher.objective.init(jax.random.key(0), teacher.objective.batch_spec())
    context = make_context(teacher.objective)
    rules = dino_encoder("dino.", "params/encoder", context)
    leaves = {
        f"params/encoder/{jax.tree_util.keystr(path, simple=True, separator='/')}": np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]["encoder"])
    }
    return {
        name: tensor
        for rule in rules
        if rule.path in leaves
        for name, tensor in zip(
            rule.tensor_names(leaves[rule.path].shape), rule.to_theirs(leaves[rule.path]), strict=True
        )
    }


def test_a_teacher_has_a_context_of_its_own():
    context = make_context(Taught(None))
    own, part = context.of_teacher("own")
    assert (part, own.encoder, own.config.model.width) == ("teacher/own", "teacher/own", 8)
    assert own.patch_sizes == {"h": 4, "w": 4}
    assert context.config.model.width == 16


def test_all_of_a_teacher_is_read(tensors):
    matching, report = read(None, tensors)
    assert not matching.problems
    assert not matching.missing
    assert not report.ignored
    assert set(matching.values) == set(matching.shapes)


def test_deeper_blocks_than_a_truncated_teacher_keeps_are_no_mistake(tensors):
    matching, report = read(2, tensors)
    assert not matching.problems
    assert not matching.missing
    assert not report.warnings()
    deeper = {name for name in tensors if name.startswith(("dino.blocks.2.", "dino.norm."))}
    assert set(report.ignored) == deeper
    np.testing.assert_array_equal(
        matching.values["teacher/own/stack/blocks/norm1/scale"][1], tensors["dino.blocks.1.norm1.weight"]
    )


def test_a_truncated_teacher_still_needs_its_own_blocks(tensors):
    fewer = {name: tensor for name, tensor in tensors.items() if "blocks.1.norm1" not in name}
    matching, _ = read(2, fewer)
    assert list(matching.problems) == ["missing from the source"]


def test_a_deeper_source_than_a_whole_teacher_is_refused(tensors):
    deeper = tensors | {
        name.replace(".2.", ".3."): x for name, x in tensors.items() if name.startswith("dino.blocks.2.")
    }
    matching, _ = read(None, deeper)
    (problem,) = matching.problems
    assert "deeper than this model" in problem


def test_positions_of_a_teacher_follow_its_own_config():
    context = make_context(Taught(None))
    own, part = context.of_teacher("own")
    (rule,), fixed = own.positions("pos_embed", part, 8, True)
    assert rule.path == "teacher/own/position/table"
    assert not fixed
