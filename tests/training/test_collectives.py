"""What the partitioned training step exchanges is what the theory of each kind of parallelism says, byte for byte."""

from __future__ import annotations

import collections
import functools

import jax

from mim_jax.planning.compilation import Usage, compile_step
from mim_jax.training.paths import STACKED, leaf_names
from mim_jax.training.program import Program
from mim_jax.training.sharding import AXES, make_mesh
from tests.tiny import tiny_config

BATCH, DEPTH, WIDTH = 16, 2, 64
VISIBLE, PATCHES = 26, 64  # tokens: 40 % of 64 patches and a class token in the encoder; the decoder's exclude its own
FLOAT = 4


def program(sizes: tuple[int, int, int], method: str = "mae", **overrides) -> Program:
    """Two blocks in each network, all 64 wide, on 8x8 patches."""
    networks = {"model": WIDTH, {"mae": "decoder", "ijepa": "predictor"}[method]: WIDTH}
    changes = {f"{name}.width": width for name, width in networks.items()}
    changes |= {f"{name}.heads": 8 for name in networks}
    changes |= {"batch_size": BATCH, "image_size": 32, "compute.scan": True}
    changes |= {f"mesh.{axis}": size for axis, size in zip(AXES, sizes, strict=True)}
    config = tiny_config(method, {**changes, **overrides})
    return Program(config, make_mesh(config.mesh), num_examples=64)


@functools.cache
def mae(sizes: tuple[int, int, int]) -> tuple[Program, Usage]:
    made = program(sizes)
    return made, compile_step(made)


def exchanged(usage: Usage, *, in_blocks: bool | None = None) -> dict[tuple[str, int], float]:
    """Bytes of one step by kind and group size, those of scalars (norms and sums of the loss) left out."""
    total: dict[tuple[str, int], float] = collections.defaultdict(float)
    for c in usage.collectives:
        if c.num_bytes > FLOAT and in_blocks in (None, "/stack/" in c.source):
            total[c.kind, len(c.group)] += c.times * c.num_bytes
    return dict(total)


def parameter_bytes(made: Program, *, sharded: bool, stacked: bool | None = None, of: str = "params") -> int:
    """Bytes that a device has of parameters once they are gathered over "fsdp": of those sharded over it, or not."""
    params = made.abstract_state.variables[of]
    total = 0
    for name, x in zip(leaf_names(params), jax.tree.leaves(params), strict=True):
        axes = [axis for axis in x.sharding.spec if axis is not None]
        if ("fsdp" in axes) == sharded and stacked in (None, STACKED in name):
            total += x.size * x.dtype.itemsize // (made.mesh.shape["tensor"] if "tensor" in axes else 1)
    return total


def activation_bytes(made: Program) -> int:
    """Bytes that a device has of all residual streams behind a block's two branches, over all blocks."""
    rows = BATCH // (made.mesh.shape["data"] * made.mesh.shape["fsdp"])
    return 2 * DEPTH * rows * (VISIBLE + PATCHES + 1) * WIDTH * FLOAT


def test_data_parallel_steps_reduce_each_gradient_once():
    made, usage = mae((8, 1, 1))
    assert exchanged(usage) == {("all-reduce", 8): usage.params_bytes}
    assert usage.params_bytes == parameter_bytes(made, sharded=True) + parameter_bytes(made, sharded=False)


def test_fully_sharded_steps_gather_parameters_twice_and_scatter_gradients_once():
    made, usage = mae((1, 8, 1))
    blocks = parameter_bytes(made, sharded=True, stacked=True)
    around = parameter_bytes(made, sharded=True, stacked=False)
    assert blocks > 20 * around > 0
    assert exchanged(usage) == {
        ("all-gather", 8): 2 * blocks + around,  # what is not in a loop is kept from the forward pass
        ("reduce-scatter", 8): blocks + around,
        ("all-reduce", 8): parameter_bytes(made, sharded=False),
    }


def test_tensor_parallel_steps_reduce_two_activations_a_block_and_direction():
    made, usage = mae((1, 1, 8))
    assert exchanged(usage) == {("all-reduce", 8): 2 * activation_bytes(made)}
    large = [c for c in usage.collectives if c.num_bytes > FLOAT]
    assert sum(c.times for c in large) == 2 * 2 * (DEPTH + DEPTH)


def test_all_three_together_exchange_what_each_does():
    made, usage = mae((2, 2, 2))
    sharded = parameter_bytes(made, sharded=True, stacked=True)
    assert exchanged(usage, in_blocks=True) == {
        ("all-gather", 2): 2 * sharded,
        ("reduce-scatter", 2): sharded,
        # Activations over "tensor"; then each device's half of the gradients over "data".
        ("all-reduce", 2): 2 * activation_bytes(made) + sharded / 2,
        ("all-reduce", 4): parameter_bytes(made, sharded=False, stacked=True),
    }
    # Around the blocks XLA moves the one sharded kernel from "fsdp" to "tensor" and back, since both have two devices.
    embed = parameter_bytes(made, sharded=True, stacked=False)
    assert exchanged(usage, in_blocks=False) == {
        ("all-gather", 2): embed,
        ("collective-permute", 2): embed,
        ("all-reduce", 4): parameter_bytes(made, sharded=False, stacked=False) + embed / 2,
    }


def test_predicting_several_blocks_of_latents_leaves_every_image_where_it_is():
    made = program((1, 8, 1), method="ijepa")
    blocks = parameter_bytes(made, sharded=True, stacked=True)
    around = parameter_bytes(made, sharded=True, stacked=False)
    teacher = parameter_bytes(made, sharded=True, of="teacher")
    assert exchanged(compile_step(made)) == {
        ("all-gather", 8): 2 * blocks + around + teacher,
        ("reduce-scatter", 8): blocks + around,
        ("all-reduce", 8): parameter_bytes(made, sharded=False),
    }


def test_scalars_are_few_and_everything_else_was_counted_above():
    for sizes in ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)):
        made, usage = mae(sizes)
        scalars = sum(c.times for c in usage.collectives if c.num_bytes <= FLOAT)
        # Three global norms, each a sum over arrays and reduced over an axis at a time; and those of the loss.
        arrays = len(jax.tree.leaves(made.abstract_state.variables["params"]))
        assert scalars <= 3 * len(AXES) * arrays + 2


def test_matrix_products_are_split_over_all_devices():
    for sizes in ((8, 1, 1), (1, 8, 1)):
        _, usage = mae(sizes)
        assert usage.flops_per_device == usage.flops / 8


def test_tensor_parallel_devices_repeat_the_products_around_the_blocks():
    _, usage = mae((1, 1, 8))
    pixels = 4 * 4
    patch_embedding = 2 * (VISIBLE - 1) * pixels * WIDTH * 2  # forward and kernel; pixels need no gradient
    decoder_embedding = 2 * VISIBLE * WIDTH * WIDTH * 3
    prediction = 2 * PATCHES * WIDTH * pixels * 3
    repeated = BATCH * (patch_embedding + decoder_embedding + prediction)
    assert usage.flops_per_device == (usage.flops - repeated) / 8 + repeated


def test_without_the_constraint_fully_sharded_steps_move_activations(monkeypatch):
    monkeypatch.setattr("mim_jax.layers.block.split_over_batch", lambda x: x)
    made = program((1, 8, 1))
    moved = exchanged(compile_step(made), in_blocks=True)
    assert moved[("all-reduce", 8)] > 10 * parameter_bytes(made, sharded=False)


def test_accumulation_moves_no_batches_and_reduces_gradients_after_each_part():
    usage = compile_step(program((8, 1, 1), accumulation_steps=2))
    assert exchanged(usage) == {("all-reduce", 8): 2 * usage.params_bytes}
