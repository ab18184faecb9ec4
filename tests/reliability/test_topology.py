"""A run that changes its devices on the way: other meshes, other numbers of devices and processes."""

import jax
import numpy as np
import pytest

from mim_jax.training.checkpoint import Checkpointer, abstract_on, load_run_config
from mim_jax.training.integrity import tree_checksums
from mim_jax.training.preemption import EXIT_PREEMPTED
from mim_jax.training.sharding import make_mesh
from tests.processes import command, finish, free_port, launch, losses, rows, run
from tests.reliability.faulty import MODULE, fault

WIDE = {"model.width": 64}  # so that something is sharded


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run on one device."""
    workdir = tmp_path_factory.mktemp("whole")
    code, output = run(command(workdir, WIDE))
    assert code == 0, output
    return workdir


def mesh(**sizes):
    return {**WIDE, "mesh.data": 1, **{f"mesh.{axis}": size for axis, size in sizes.items()}}


def run_together(workdir, overrides, count, devices):
    """Exit codes and outputs of `count` processes that train together on `devices` each."""
    flags = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}"]
    processes = [
        launch(command(workdir, overrides, *flags, f"--process_id={index}"), devices=devices) for index in range(count)
    ]
    return [finish(process) for process in processes]


@pytest.mark.slow
def test_from_8_devices_to_4_to_2_processes_to_1(whole, tmp_path):
    for sizes, devices, stop in ((dict(data=8), 8, 3), (dict(fsdp=4), 4, 5)):
        arguments = command(tmp_path, {**mesh(**sizes), "checkpoint.every": "100 steps"}, module=MODULE)
        code, output = run(arguments, devices=devices, environment=fault(terminate_at_batch=stop))
        assert code == EXIT_PREEMPTED, output
    reached = max(losses(tmp_path))
    assert reached < 8
    results = run_together(tmp_path, {**mesh(data=2, tensor=2), "checkpoint.every": "1 steps"}, count=2, devices=2)
    assert [code for code, _ in results] == [0, 0], results
    assert f"Resuming at step {reached}" in results[0][1]
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 9))
    expected, actual = losses(whole), losses(tmp_path)
    np.testing.assert_allclose([actual[step] for step in expected], list(expected.values()), rtol=1e-5)
    code, output = run(command(tmp_path, WIDE))
    assert code == 0, output
    assert "already complete" in output


@pytest.mark.parametrize("sizes", [dict(data=8), dict(fsdp=8), dict(data=2, fsdp=2, tensor=2)])
def test_a_checkpoint_is_the_same_on_every_mesh(sizes, whole):
    config = load_run_config(whole)
    config.mesh.update(data=1, **sizes) if "data" not in sizes else config.mesh.update(**sizes)
    checkpointer = Checkpointer(whole, read_only=True)
    saved = checkpointer.arrays(8)["variables"]  # on one device
    target = abstract_on(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved), make_mesh(config.mesh))
    restored = checkpointer.restore_variables(8, target)
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    assert tree_checksums(restored) == tree_checksums(saved)
    kernel = restored["params"]["encoder"]["stack"]["blocks"]["mlp"]["fc1"]["kernel"]
    sharded = sizes.get("fsdp", 1) * sizes.get("tensor", 1) > 1
    assert kernel.sharding.is_fully_replicated != sharded
