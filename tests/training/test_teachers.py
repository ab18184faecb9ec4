"""Teachers of a run: the frozen ones loaded once, stored once, verified and in no checkpoint; none with activations."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

import mim_jax
from mim_jax.errors import CheckpointError, ConfigError, WeightsError
from mim_jax.interop import WeightsWarning, import_with_report
from mim_jax.training.checkpoint import Checkpointer, load_run
from mim_jax.training.loop import Trainer
from mim_jax.training.paths import leaf_names
from mim_jax.training.teachers import section_name
from tests.processes import rows
from tests.tiny import clock, tiny_config
from tests.training.runs import untrained_run

METHOD = "dmae"  # any method with one teacher, here of a part of whose blocks
# Of one length, so that they share one compiled step.
LENGTH = {"duration": "2 steps", "checkpoint.every": "2 steps"}


def config(**overrides):
    return tiny_config(METHOD, {**LENGTH, **overrides})


def train(workdir, import_weights=import_with_report, **overrides):
    return Trainer(config(**overrides), workdir, import_weights=import_weights).run()


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory):
    """A run of MAE to learn from, whose weights are not those a student starts with."""
    return untrained_run(tiny_config("mae", {"seed": 1}), tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_run):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(workdir, **{"teacher.weights": str(teacher_run), "checkpoint.every": "1 steps"})


def without_its_end(workdir, copy):
    """A copy of a run whose last step is still to be taken."""
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / "2")
    return copy


def teacher_of(variables):
    return variables["teacher"]["teacher"]


def test_it_has_the_weights_of_the_run(finished, teacher_run):
    encoder = load_run(teacher_run).variables["params"]["encoder"]
    teacher = teacher_of(finished[1].variables)
    kept = jax.tree.leaves(teacher["stack"]["blocks"])[0].shape[0]
    blocks = jax.tree.map(lambda x: x[:kept], encoder["stack"]["blocks"])
    jax.tree.map(np.testing.assert_array_equal, teacher["stack"]["blocks"], blocks)
    jax.tree.map(np.testing.assert_array_equal, teacher["patch_embed"], encoder["patch_embed"])


def test_it_is_stored_once_and_in_no_checkpoint(finished):
    workdir, _ = finished
    assert (workdir / "teachers").is_dir()
    checkpointer = Checkpointer(workdir, read_only=True)
    assert checkpointer.steps() == [1, 2]
    for step in checkpointer.steps():
        assert not any("teacher" in name for name in leaf_names(checkpointer.arrays(step)))
        assert checkpointer.meta(step)["teachers"]


def test_a_restored_run_has_it(finished):
    workdir, state = finished
    jax.tree.map(np.testing.assert_array_equal, load_run(workdir).variables, state.variables)


def test_a_resumed_run_needs_its_source_no_more_and_is_the_same(finished, teacher_run, tmp_path):
    workdir = without_its_end(finished[0], tmp_path / "run")
    moved = teacher_run.rename(tmp_path / "elsewhere")
    try:
        resumed = train(workdir, **{"teacher.weights": "gone"})
    finally:
        moved.rename(teacher_run)
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, finished[1].variables)
    assert [row["step"] for row in rows(workdir)] == [1, 2]


def test_the_dtype_of_the_computation_may_change(teacher_run, tmp_path):
    weights = {"teacher.weights": str(teacher_run)}
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm mixes its float32 statistics with bfloat16 inputs
        half = train(tmp_path / "half", **weights, **{"checkpoint.every": "1 steps", "compute.dtype": "bfloat16"})
        kernel = teacher_of(half.variables)["patch_embed"]["projection"]["kernel"]
        assert kernel.dtype == jax.numpy.bfloat16
        workdir = without_its_end(tmp_path / "half", tmp_path / "whole")
        overrides = {**weights, "compute.dtype": "float32"}
        whole = Trainer(config(**overrides), workdir, allow_config_change=True).run()
        restored = load_run(workdir).variables
    np.testing.assert_array_equal(
        teacher_of(whole.variables)["patch_embed"]["projection"]["kernel"], kernel.astype(np.float32)
    )
    jax.tree.map(np.testing.assert_array_equal, restored, whole.variables)


def test_a_run_of_another_number_of_devices_can_teach(teacher_run, finished, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(teacher_run, source)
    saved = json.loads((source / "config.json").read_text())
    saved["mesh"] = {"data": 1, "fsdp": 4, "tensor": 1}
    (source / "config.json").write_text(json.dumps(saved))
    state = train(tmp_path / "run", **{"teacher.weights": str(source)})
    jax.tree.map(np.testing.assert_array_equal, teacher_of(state.variables), teacher_of(finished[1].variables))


@pytest.mark.parametrize("damage", ["missing", "another", "unreadable"])
def test_what_is_wrong_with_a_stored_teacher_costs_no_checkpoint(finished, teacher_run, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    overrides = {"teacher.weights": str(teacher_run), "duration": "4 steps"}
    stored = workdir / "teachers"
    if damage == "another":
        teacher = jax.tree.map(lambda x: x + 1, {"teacher": teacher_of(finished[1].variables)})
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(stored, teacher, force=True)
    else:
        shutil.rmtree(stored)
    if damage == "unreadable":
        stored.mkdir()
    reason = {"missing": "is missing", "another": "are not those of the checkpoint", "unreadable": "cannot be read"}
    with pytest.raises(CheckpointError, match=f"{reason[damage]}.*put the folder back"):
        Trainer(config(**overrides), workdir, allow_config_change=True).run()
    assert Checkpointer(workdir, read_only=True).steps() == [1, 2]
    assert not (workdir / "damaged").exists()


def test_without_weights_nothing_is_compiled(tmp_path):
    with pytest.raises(ConfigError, match=r"set teacher\.weights to a run's directory or a weights file"):
        Trainer(config(**{"teacher.weights": ""}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_the_student_starts_from_is_not_silently_the_teacher_too(teacher_run, tmp_path):
    overrides = {"teacher.weights": "", "init_from": str(teacher_run)}
    with pytest.raises(ConfigError, match=r"set init_from, and init_parts=\(\) so that only the teacher takes from it"):
        Trainer(config(**overrides), tmp_path)
    run = load_run(teacher_run)
    file = mim_jax.export_weights(run.objective, run.variables, tmp_path, layout="facebookresearch/mae")
    overrides |= {"init_from": str(file), "init_layout": "facebookresearch/mae"}
    with pytest.warns(WeightsWarning), pytest.raises(ConfigError, match="The teacher 'teacher' has no weights"):
        train(tmp_path / "run", **overrides)


def test_a_random_one_is_said_to_be(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(tmp_path, **{"teacher.weights": "random"})
    assert "'teacher' is random" in caplog.text


def kernel(variables):
    """Of the student's patch embedding."""
    return variables["params"]["encoder"]["patch_embed"]["projection"]["kernel"]


def test_without_weights_of_its_own_it_takes_those_of_init_from(teacher_run, finished, tmp_path):
    overrides = {"teacher.weights": "", "init_from": str(teacher_run), "init_parts": ()}
    state = train(tmp_path, **overrides)
    jax.tree.map(np.testing.assert_array_equal, teacher_of(state.variables), teacher_of(finished[1].variables))
    objective = mim_jax.create(config())
    start = jax.jit(lambda rng: kernel(objective.init(rng, objective.batch_spec())))(jax.random.key(0))
    moved = np.abs(kernel(state.variables) - start)
    assert moved.max() < 4e-3  # a step or two from its own start, not the teacher's weights


def test_a_run_that_does_not_fit_is_refused(teacher_run, tmp_path):
    weights = {"teacher.weights": str(teacher_run)}
    with pytest.raises(ConfigError, match="set the sizes under teacher to the run's"):
        train(tmp_path / "a", **weights, **{"teacher.width": 24, "teacher.heads": 2})
    with pytest.raises(ConfigError, match=r"model\.position='sincos', the teacher of teacher has 'learned'"):
        train(tmp_path / "b", **weights, **{"teacher.name": "clip_vit_b16", "teacher.patch_size": 4})
    with pytest.raises(ConfigError, match="saw images normalised otherwise than teacher is to; set data.mean"):
        train(tmp_path / "c", **weights, **{"data.mean": (0.1,), "data.std": (0.5,)})


def test_a_weights_file_is_read_through_its_layout(teacher_run, finished, tmp_path):
    run = load_run(teacher_run)
    file = mim_jax.export_weights(run.objective, run.variables, tmp_path, layout="facebookresearch/mae")
    overrides = {"teacher.weights": str(file)}
    with pytest.raises(ConfigError, match=r"set teacher\.layout too"):
        train(tmp_path / "a", **overrides)
    with pytest.raises(ConfigError, match=r"use mim_jax\.train\.train"):
        train(tmp_path / "b", None, **overrides, **{"teacher.layout": "facebookresearch/mae"})
    state = train(tmp_path / "c", **overrides, **{"teacher.layout": "facebookresearch/mae"})
    jax.tree.map(np.testing.assert_array_equal, teacher_of(state.variables), teacher_of(finished[1].variables))
    with pytest.raises(WeightsError, match="The teacher 'teacher'"):
        train(tmp_path / "d", **overrides, **{"teacher.layout": "openai/clip"})
    part = {name: value for name, value in load_file(file).items() if "blocks.1." not in name}
    save_file(part, tmp_path / "part.safetensors")
    overrides |= {"teacher.weights": str(tmp_path / "part.safetensors"), "teacher.layout": "facebookresearch/mae"}
    with pytest.raises(WeightsError, match="(?s)The teacher 'teacher'.*missing"):
        train(tmp_path / "e", **overrides)


def test_sections_are_named_by_their_place():
    objective = mim_jax.create(config())
    assert section_name(objective.config, objective.teachers["teacher"].section) == "teacher"


@pytest.mark.parametrize(
    ("method", "ask", "sizes"),
    [
        ("maskalign", "teach", {"teacher.depth": 8}),
        ("ijepa", "_encode_intact", {"model.depth": 8, "predictor.depth": 1, "blocks.num_targets": 1}),
    ],
    ids=["frozen", "ema"],
)
def test_a_step_keeps_none_of_its_activations(method, ask, sizes, monkeypatch):
    """Against the same step with a teacher that says zeros (`ask`), and with one that is trained too, which keeps all.

    A method may well gather what every block puts out.
    """
    objective = mim_jax.create(tiny_config(method, {"compute.scan": True, **sizes}))
    batch = objective.batch_spec(16)
    variables = jax.eval_shape(objective.init, jax.random.key(0), batch)
    masks = jax.eval_shape(objective.masks, variables, batch, jax.random.key(0), clock())

    def temporary_bytes(*trained):
        def loss(given, others, batch, masks):
            return objective.loss({**given, **others}, batch, masks, None, clock())[0]

        others = {name: tree for name, tree in variables.items() if name not in trained}
        given = {name: variables[name] for name in trained}
        compiled = jax.jit(jax.grad(loss)).lower(given, others, batch, masks).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    taught = temporary_bytes("params")
    with monkeypatch.context() as patch:
        patch.setattr(jax.lax, "stop_gradient", lambda x: x)
        trained = temporary_bytes("params", "teacher")
    said = jax.eval_shape(getattr(objective, ask), variables, batch if ask == "teach" else batch["image"])
    monkeypatch.setattr(objective, ask, lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), said))
    untaught = temporary_bytes("params")

    blocks = 8 * 4 * 16 * (objective.encoder.num_patches + 1) * 16  # bytes of what all eight blocks put out
    # The backward pass of one needs its MLP's layers, four times as wide, queries, keys, values and more.
    assert taught - untaught < 2 * blocks
    assert trained - untaught > 20 * blocks
