"""Training from stored features is training with the teacher, whose forward pass is then in no step."""

import jax
import numpy as np
import pytest

import mim_jax
from mim_jax import data
from mim_jax.config import objective_class
from mim_jax.contract import STORED, Objective, stored_name
from mim_jax.errors import ConfigError, DataError
from mim_jax.training.flops import count_flops
from mim_jax.training.initialize import first_variables
from mim_jax.training.loop import Trainer
from mim_jax.training.program import Program
from mim_jax.training.sharding import make_mesh
from mim_jax.training.teacher_cache import CacheMaker
from tests.processes import rows
from tests.tiny import METHODS, synthetic_batch, tiny_config
from tests.training.runs import TinyRun, single_device_mesh

METHOD = "maskalign"  # whose masks and loss both ask the teacher
THAT_TEACH = [name for name in METHODS if objective_class(method=name).teach is not Objective.teach]
UNCHANGING = {"data.crop": "none", "data.flip": False}
KEY = jax.random.key(0)


def config(**overrides):
    given = {"duration": "3 steps", "level_weights": "top1", "teacher.weights": "random", **UNCHANGING}
    # Adam would blow the rounding of a gradient that is zero, a key's bias, up to the size of a step.
    given |= {"optimizer.name": "sgd", "optimizer.lr": 0.1}
    return tiny_config(METHOD, {**given, **overrides})


def maker(directory, dtype="float32", **overrides):
    given = config(**overrides)
    info = data.data_info(given)
    program = Program(given, make_mesh(given.mesh), info.num_train_examples)
    return CacheMaker(program, info, first_variables(program), directory, dtype)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cache") / "features"
    advanced = []
    assert maker(directory).run(advance=advanced.append)
    assert sum(advanced) == 64
    return directory


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("computed")
    return Trainer(config(), workdir).run(), rows(workdir)


def test_the_trajectory_is_the_same(cache, computed, tmp_path):
    state = Trainer(config(**{"data.teacher_cache": str(cache)}), tmp_path).run()
    for row, expected in zip(rows(tmp_path), computed[1], strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
    assert rows(tmp_path)[-1]["update_norm"] > 1e-2
    for ours, expected in zip(jax.tree.leaves(state), jax.tree.leaves(computed[0]), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


def test_half_precision_is_a_rounding(computed, tmp_path):
    assert maker(tmp_path / "half", "float16").run()
    with pytest.raises(ConfigError, match="of another dtype or form"):
        maker(tmp_path / "half", "bfloat16")
    Trainer(config(**{"data.teacher_cache": str(tmp_path / "half")}), tmp_path / "run").run()
    for row, expected in zip(rows(tmp_path / "run"), computed[1], strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert rows(tmp_path / "run")[0]["loss"] != computed[1][0]["loss"]


@pytest.mark.parametrize("method", THAT_TEACH)
def test_the_teacher_is_in_no_step(method):
    run = TinyRun(tiny_config(method), single_device_mesh())
    objective, variables = run.objective, run.abstract_state.variables
    batch = objective.batch_spec(16)
    taught = jax.tree_util.tree_leaves_with_path(jax.eval_shape(objective.teach, variables, batch))
    stored = {stored_name(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in taught}
    teacher = count_flops(objective.teach, variables, batch)
    with_teacher, without = (
        count_flops(run.step_function(), run.abstract_state, given) for given in (batch, {**batch, **stored})
    )
    assert with_teacher - without == teacher > 0


@pytest.mark.parametrize("method", [METHOD, "unic"])  # the latter's are dicts of arrays
def test_what_is_stored_takes_the_place_of_what_is_said(method):
    objective = mim_jax.create(tiny_config(method))
    variables, batch = objective.init(KEY, objective.batch_spec()), synthetic_batch(objective, 2)
    taught = jax.jit(objective.teach)(variables, batch)
    leaves = jax.tree_util.tree_leaves_with_path(taught)
    assert all(name.startswith(STORED) for name in (stored_name(path) for path, _ in leaves))
    stored = {stored_name(path): jax.device_get(leaf) for path, leaf in leaves}
    jax.tree.map(np.testing.assert_array_equal, objective.taught(variables, {**batch, **stored}), taught)
    half = {name: x.astype(np.float16) if x.dtype == np.float32 else x for name, x in stored.items()}
    read = objective.taught(variables, {**batch, **half})
    for ours, expected in zip(jax.tree.leaves(read), jax.tree.leaves(taught), strict=True):
        assert ours.dtype == expected.dtype
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)


def test_parts_make_a_whole_and_work_done_stays_done(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("mim_jax.training.teacher_cache._SHARD_BYTES", 1)  # a file for every batch
    first = maker(tmp_path / "parts")
    assert first.writer.manifest.num_shards == 4
    assert not first.run(1, 2)
    run = config(**{"data.teacher_cache": str(tmp_path / "parts")})
    with pytest.raises(DataError, match="holds only a part of the features"):
        Trainer(run, tmp_path / "run")
    advanced = []
    second = maker(tmp_path / "parts")
    monkeypatch.setattr(second, "_records", lambda *_: pytest.fail("a file is there already"))
    assert not second.run(1, 2, advanced.append)
    assert advanced == [32]
    assert maker(tmp_path / "parts").run(0, 2)
    ours, whole = (
        data.train_batches(config(**{"data.teacher_cache": str(path)})) for path in (tmp_path / "parts", cache)
    )
    one, other = next(ours), next(whole)
    for name in other:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.mean": (0.1,), "data.std": (0.5,)}, r"made with data\.mean"),
        ({"data.crop": "resize", "image_size": 24}, r"made with image_size \[28, 28\], here it is \[24, 24\]"),
        ({"data.train_split": "test"}, r"made with data\.train_split 'train', here it is 'test'"),
        ({"level_weights": "top2"}, r"are taught/importance \[49\], taught/layers \[1, 50, 16\], this run reads"),
        ({"data.flip": True}, r"set data\.flip=False, or train without data\.teacher_cache"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_config_is_refused_before_anything_is_compiled(cache, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        Trainer(config(**overrides, **{"data.teacher_cache": str(cache)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"seed": 1}, r"made with teacher\.weights \(their checksum\)"),
        ({"teacher.dtype": "bfloat16"}, r"made with teacher\.dtype 'float32', here it is 'bfloat16'"),
        ({"level_weights": "mid0"}, r"as taught/layers differs by .* from what the run's teachers say"),
    ],
    ids=["weights", "dtype", "level"],
)
def test_another_teacher_is_refused_before_the_first_step(cache, tmp_path, overrides, message):
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ConfigError, match=message):
        Trainer(config(**overrides, **{"data.teacher_cache": str(cache)}), tmp_path).run()
    assert rows(tmp_path) == []


def test_a_teacher_that_sees_masked_images_is_refused(tmp_path):
    objective = mim_jax.create(tiny_config("dmae"))
    with pytest.raises(ConfigError, match="dmae has no frozen teacher that sees nothing but the intact image"):
        objective.teach({}, {})
    given = tiny_config("dmae", {**UNCHANGING, "teacher.weights": "random", "data.teacher_cache": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"remove data\.teacher_cache"):
        Trainer(given, tmp_path / "run")


def test_a_teacher_of_mixed_images_is_refused():
    mixed = mim_jax.load_config("configs/g2sd_fashion_mnist_distillation.py", {"teacher.weights": "random"})
    mixed.mixing.probability = 1.0
    with pytest.raises(ConfigError, match=r"mixing is on.*set mixing\.probability to 0\.0"):
        mim_jax.create(mixed).teach({}, {})


def test_features_of_data_source_are_not_those_of_given_batches(cache, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.teacher_cache is about the images of data\.source"):
        Trainer(config(**{"data.teacher_cache": str(cache)}), tmp_path, batches=lambda step: iter(()))


def test_what_overflows_is_not_stored(tmp_path):
    made = maker(tmp_path / "a", "float16")
    teacher = made._variables["teacher"]["teacher"]
    kernel = teacher["patch_embed"]["projection"]["kernel"]
    teacher["patch_embed"]["projection"]["kernel"] = kernel * 1e6
    with pytest.raises(ConfigError, match="are not finite in float16; choose another --dtype"):
        made.run()
    assert not made.writer.finish()
