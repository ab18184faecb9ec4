"""Several real processes on this machine: how they find one another, and that together they are one run."""

import os
import re
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest

from mim_jax.training.checkpoint import Checkpointer, load_run, load_run_config
from mim_jax.training.preemption import EXIT_PREEMPTED, PreemptionNotice
from mim_jax.training.watchdog import EXIT_STALLED
from tests.processes import (
    command,
    finish,
    free_port,
    launch,
    losses,
    rows,
    run,
    wait_for_step,
)

MESH = {"model.width": 64, "mesh.data": 2, "mesh.fsdp": 2}  # wide enough for something to be sharded
STEPS = {**MESH, "duration": "4 steps"}
CLUSTER = ["--distributed", "--startup_seconds=120"]
FIRST_CLUSTER_PORT = 2**16 - 2**12


def by_hand(count):
    """The flags of each of `count` processes that meet at a free port."""
    meeting = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}", "--startup_seconds=120"]
    return [[*meeting, f"--process_id={index}"] for index in range(count)]


def slurm(port, index, count):
    """What srun sets for one of `count` tasks on this machine, as far as JAX reads it."""
    return {
        "SLURM_JOB_ID": str(port - FIRST_CLUSTER_PORT),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


def open_mpi(port, index, count):
    """What mpirun of Open MPI 4 sets for one of `count` ranks on this machine, as far as JAX reads it."""
    job = (port - FIRST_CLUSTER_PORT) * 2**12
    return {
        "OMPI_MCA_orte_hnp_uri": f"{job}.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
    }


def cluster_port():
    """A free port of the range from which JAX takes a cluster's coordinator, by the job's number."""
    for port in range(FIRST_CLUSTER_PORT + os.getpid() % 2**11, 2**16):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("No port is free.")


def start(workdir, overrides, flags, cluster=None):
    """One process for each element of `flags`, four devices in all, with the variables of a cluster's launcher."""
    count, port = len(flags), cluster_port()
    return [
        launch(
            command(workdir, overrides, *own),
            devices=4 // count,
            environment=None if cluster is None else cluster(port, index, count),
        )
        for index, own in enumerate(flags)
    ]


def succeed(processes):
    """Waits for all processes, none of which may fail; returns what they printed."""
    results = [finish(process) for process in processes]
    assert [code for code, _ in results] == [0] * len(processes), results
    return [output for _, output in results]


def assert_same_run(one, other):
    """Equal losses at the same steps; every step logged once, so by one process."""
    expected, actual = losses(one), losses(other)
    assert [row["step"] for row in rows(other)] == [row["step"] for row in rows(one)] == [1, 2, 3, 4]
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), rtol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run in one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone")
    succeed(start(workdir, STEPS, [[]]))
    return workdir


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """The same run as four tasks of SLURM with a device each, and what they printed."""
    workdir = tmp_path_factory.mktemp("four")
    return workdir, succeed(start(workdir, STEPS, [CLUSTER] * 4, slurm))


def test_four_processes_equal_one(alone, four):
    workdir, outputs = four
    assert_same_run(alone, workdir)
    assert [("step 4/4" in output) for output in outputs] == [True, False, False, False]


def test_a_checkpoint_of_four_processes_is_read_by_one(four):
    workdir, _ = four
    assert len(list(workdir.glob("checkpoints/4/variables/ocdbt.process_*"))) == 4  # written by all of them
    checkpointer = Checkpointer(workdir, read_only=True)
    arrays = checkpointer.arrays(4)  # compares every array with the checksum that the four took of it
    checkpointer.close()
    config = load_run_config(workdir)
    config.mesh.update(data=1, fsdp=-1)
    variables = load_run(workdir, config=config).variables
    jax.tree.map(np.testing.assert_array_equal, variables, arrays["variables"])
    kernel = variables["params"]["encoder"]["stack"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert not kernel.sharding.is_fully_replicated


def test_two_ranks_of_open_mpi_go_on_from_the_checkpoint_of_one_process(alone, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(alone, workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    outputs = succeed(start(workdir, STEPS, [CLUSTER] * 2, open_mpi))
    assert all("damaged" not in output for output in outputs), outputs
    assert "Resuming at step 2" in outputs[0]
    assert_same_run(alone, workdir)


def test_a_signal_to_one_process_saves_and_ends_all(tmp_path):
    overrides = {**MESH, "duration": "4000 steps", "checkpoint.every": "4000 steps"}
    processes = start(tmp_path, overrides, by_hand(2))
    try:
        wait_for_step(tmp_path, 5)
        processes[1].send_signal(signal.SIGTERM)
        results = [finish(process, seconds=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [code for code, _ in results] == [EXIT_PREEMPTED] * 2, results
    reached = max(losses(tmp_path))
    assert 5 <= reached < 4000
    checkpointer = Checkpointer(tmp_path, read_only=True)
    assert checkpointer.steps() == [reached]
    assert int(checkpointer.arrays(reached)["optimizer"]["step"]) == reached
    checkpointer.close()


def test_sigusr1_becomes_the_sigterm_that_jax_distributed_listens_for(monkeypatch):
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        with PreemptionNotice():
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_does_not_wait_for_ever_for_the_others(index, tmp_path):
    flags = [*by_hand(2)[index], "--startup_seconds=2"]
    started = time.monotonic()
    code, output = run(command(tmp_path, None, *flags))
    assert time.monotonic() - started < 60
    assert code == EXIT_STALLED, output
    assert re.search(rf"^error: .*process {index} of 2 at 127\.0\.0\.1.*within 2 s \(--startup_seconds\)", output, re.M)
    assert "stack trace" not in output


def test_distributed_without_a_cluster_is_refused(tmp_path):
    code, output = run(command(tmp_path / "run", None, "--distributed"))
    assert code == 2, output
    assert output.startswith("error: --distributed finds no TPU, SLURM, Open MPI 4 or GKE cluster")
    assert len(output.splitlines()) == 1


def test_a_coordinator_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        flags = [f"--coordinator=127.0.0.1:{taken.getsockname()[1]}", "--num_processes=2", "--process_id=0"]
        code, output = run(command(tmp_path / "run", None, *flags))
    assert code == 2, output
    assert output.startswith("error: Process 0 cannot listen on port ")
    assert len(output.splitlines()) == 1
