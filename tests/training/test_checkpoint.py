import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mim_jax.errors import CheckpointError, ConfigError
from mim_jax.training import sharding
from mim_jax.training.checkpoint import Checkpointer, abstract_on
from mim_jax.training.state import state_from_variables

OPTIMIZER = optax.adam(1e-3)


def state_at(step: int):
    params = {"dense": {"kernel": jnp.arange(4096.0).reshape(64, 64) + step, "bias": jnp.ones((64,)) * step}}
    return state_from_variables({"params": params}, OPTIMIZER).replace(step=jnp.int32(step))


def template(mesh):
    return abstract_on(jax.eval_shape(lambda: state_at(0)), mesh)


@pytest.fixture
def mesh():
    return jax.make_mesh((8, 1, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


@pytest.fixture
def saved(tmp_path):
    """A run with checkpoints 1, 2 and 3."""
    checkpointer = Checkpointer(tmp_path, keep=5, asynchronous=False)
    for step in (1, 2, 3):
        checkpointer.save(state_at(step), {"config": {}})
    checkpointer.close()
    return tmp_path


def restore(workdir, mesh):
    return Checkpointer(workdir).restore_latest(template(mesh), lambda meta: None)


def data_files(workdir, step):
    folder = workdir / "checkpoints" / str(step) / "variables"
    return [p for p in folder.rglob("*") if p.is_file() and "/d/" in str(p)]


def flip_a_byte(file: pathlib.Path):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(bytes(content))


def test_the_newest_comes_back_bit_for_bit(saved, mesh):
    jax.tree.map(np.testing.assert_array_equal, restore(saved, mesh), state_at(3))


def test_a_new_run_has_none(tmp_path, mesh):
    assert restore(tmp_path, mesh) is None


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (4, 1, 2)])
def test_another_mesh_gets_the_same_values(saved, sizes):
    mesh = jax.make_mesh(sizes, sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    restored = restore(saved, mesh)
    jax.tree.map(np.testing.assert_array_equal, restored, state_at(3))
    assert restored.variables["params"]["dense"]["kernel"].sharding.mesh == mesh


def test_a_flipped_byte_is_noticed_and_the_one_before_used(saved, mesh, caplog):
    flip_a_byte(max(data_files(saved, 3), key=lambda p: p.stat().st_size))
    with caplog.at_level(logging.WARNING):
        assert int(restore(saved, mesh).step) == 2
    assert "Checkpoint 3 is damaged" in caplog.text
    assert (saved / "damaged" / "3").is_dir()


def test_a_truncated_or_missing_file_is_survived(saved, mesh):
    largest = max(data_files(saved, 3), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    for file in data_files(saved, 2):
        file.unlink()
    assert int(restore(saved, mesh).step) == 1


def test_an_empty_directory_named_like_a_step_is_ignored(saved, mesh):
    (saved / "checkpoints" / "7").mkdir()
    assert int(restore(saved, mesh).step) == 3


def test_with_none_left_nothing_starts_afresh(saved, mesh):
    for step in (1, 2, 3):
        for file in data_files(saved, step):
            file.unlink()
    with pytest.raises(CheckpointError, match="No sound checkpoint"):
        restore(saved, mesh)
    with pytest.raises(CheckpointError, match="No sound checkpoint"):  # nor does a second try
        restore(saved, mesh)


def test_another_tree_is_refused_and_left_alone(saved, mesh):
    other = state_from_variables({"params": {"dense": {"kernel": jnp.zeros((64, 64))}}}, OPTIMIZER)
    with pytest.raises(ConfigError, match="dense/bias"):
        Checkpointer(saved).restore_latest(abstract_on(jax.eval_shape(lambda: other), mesh), lambda meta: None)
    assert int(restore(saved, mesh).step) == 3


def test_the_meta_may_refuse(saved, mesh):
    def refuse(meta):
        raise ConfigError(f"not {meta['step']}")

    with pytest.raises(ConfigError, match="not 3"):
        Checkpointer(saved).restore_latest(template(mesh), refuse)


def test_older_steps_are_not_saved_in_silence(saved):
    with pytest.raises(CheckpointError, match="newer steps exist"):
        Checkpointer(saved, asynchronous=False).save(state_at(0), {"config": {}})


def test_only_the_last_few_are_kept(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2, keep_every=4, asynchronous=False)
    for step in range(1, 8):
        checkpointer.save(state_at(step), {"config": {}})
    checkpointer.close()
    assert Checkpointer(tmp_path, read_only=True).steps() == [4, 6, 7]


def test_metadata_is_json(saved):
    meta = Checkpointer(saved, read_only=True).meta(3)
    assert meta["step"] == 3 and json.dumps(meta)
    assert "variables/params/dense/kernel" in meta["checksums"]


def test_reading_creates_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoints"):
        Checkpointer(tmp_path / "typo", read_only=True)
    assert not (tmp_path / "typo").exists()
