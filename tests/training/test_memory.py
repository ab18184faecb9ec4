"""What micro-batches, rematerialisation and smaller moments save, in the compiler's own plan of the step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.training.checkpoint import Checkpointer
from mim_jax.training.program import Program
from mim_jax.training.sharding import make_mesh
from tests.tiny import tiny_config
from tests.training.runs import NUM_EXAMPLES, TinyRun, single_device_mesh
from tools.memory_table import Execution, Memory, markdown, replace_table, step_memory

# Deep and narrow, with a large batch: what is kept for the backward pass outweighs parameters and gradients.
SHAPE = {"batch_size": 64, "model.depth": 4, "model.width": 32, "compute.scan": True}


@functools.cache
def memory(**overrides) -> Memory:
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    return step_memory(tiny_config("mae", {**SHAPE, **changes}), single_device_mesh(), NUM_EXAMPLES)


def bytes_of_parameters() -> list[int]:
    program = Program(tiny_config("mae", SHAPE), single_device_mesh(), NUM_EXAMPLES)
    return [x.size * x.dtype.itemsize for x in jax.tree.leaves(program.abstract_state.variables["params"])]


def parameter_bytes() -> int:
    return sum(bytes_of_parameters())


def test_four_micro_batches_keep_a_quarter():
    whole, quarters = memory().temporary, memory(accumulation_steps=4).temporary
    assert quarters < whole
    # Beside the activations: the sum of the gradients, a micro-batch's own, one of them on its way from a matrix to the
    # kernel's axes, and the images in their new order.
    images = 4 * 64 * 28 * 28
    assert quarters <= whole / 4 + 2 * parameter_bytes() + max(bytes_of_parameters()) + images


def test_rematerialisation_keeps_less_and_less():
    none, dots, full = (memory(compute__remat=remat).temporary for remat in ("none", "dots", "full"))
    assert full < dots < none
    assert memory(compute__remat="full").arguments == memory().arguments


def test_a_bfloat16_moment_is_half_as_large():
    saved = memory().arguments - memory(optimizer__moment_dtype="bfloat16").arguments
    assert saved == parameter_bytes() // 2


def test_bfloat16_moments_are_sharded_like_their_parameters():
    config = tiny_config("mae", {"model.width": 64, "optimizer.moment_dtype": "bfloat16", "mesh.fsdp": 8})
    state = Program(config, make_mesh(config.mesh), NUM_EXAMPLES).abstract_state
    params = jax.tree.leaves(state.variables["params"])
    first = [x for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.bfloat16]
    assert [(x.shape, x.sharding) for x in first] == [(x.shape, x.sharding) for x in params]
    assert not all(x.sharding.is_fully_replicated for x in first)


def test_bfloat16_moments_are_saved_and_restored_bit_for_bit(tmp_path):
    run = TinyRun(tiny_config("mae", {"optimizer.moment_dtype": "bfloat16"}), single_device_mesh())
    state, _ = run.train(2)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(state, {})
    checkpointer.close()
    restored = Checkpointer(tmp_path).restore_latest(run.abstract_state, lambda meta: None)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert jax.tree.map(lambda x: x.dtype, restored) == jax.tree.map(lambda x: x.dtype, state)
    (_, expected), (_, actual) = run.train(1, state), run.train(1, restored)
    assert actual == expected
    other = TinyRun(tiny_config("mae"), single_device_mesh()).abstract_state
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(ConfigError, match=r"Checkpoint 2 holds optimizer/.*/mu/.* as bfloat16, but .* as float32"):
        checkpointer.restore_latest(other, lambda meta: None)
    assert checkpointer.steps() == [2]  # sound, and not set aside


def test_the_table_goes_between_its_markers():
    table = markdown([(Execution("ViT-B/16", remat="full"), Memory(3 * 2**20, 2**30, 4.2))])
    assert table.splitlines()[-1] == "| ViT-B/16 | float32 | scanned | full | 1 | float32 | 3 | 1,024 | 4 |"
    document = "before\n<!-- memory_table -->\nold\n<!-- /memory_table -->\nafter\n"
    assert replace_table(document, "new\n") == document.replace("old", "new")
    with pytest.raises(ValueError, match="lacks the lines"):
        replace_table("no markers", table)
