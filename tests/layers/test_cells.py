import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mim_jax.layers import cells as module
from mim_jax.layers.cells import Cells
from mim_jax.layers.placement import split_over_batch
from mim_jax.masking.visible import Visible
from mim_jax.training.sharding import batch_sharding, make_mesh, on_mesh, replicated

GRID = (2, 3)
CELLS = Cells(Visible.from_ids(jnp.asarray([[4, 0, 2], [1, 5, 3]], jnp.int32), 6), GRID)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_cells_are_taken_from_their_places_and_put_back():
    maps = normal(0, 2, 4, 6, 5)
    cells = CELLS.take(maps)
    np.testing.assert_array_equal(cells[0, 0], maps[0, 2:4, 2:4])
    np.testing.assert_array_equal(cells[1, 1], maps[1, 2:4, 4:6])
    placed = CELLS.place(cells)
    np.testing.assert_array_equal(placed[1, 2:4, 4:6], maps[1, 2:4, 4:6])
    assert not placed[1, :2, :2].any()
    np.testing.assert_array_equal(CELLS.take(placed), cells)


def test_a_tile_is_a_cell_and_what_surrounds_it():
    x = normal(0, 2, 3, 2, 2, 5)
    maps = np.pad(CELLS.place(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    tiles = CELLS.tiles(x, 1)
    np.testing.assert_array_equal(tiles[0, 0], maps[0, 2:6, 2:6])
    np.testing.assert_array_equal(tiles[1, 0], maps[1, 0:4, 2:6])


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("side", [1, 2, 8])  # sites of a cell: the window is the tile; larger than the cell; smaller
@pytest.mark.parametrize("kernel", [(3, 3, 4, 6), (7, 7, 1, 4)], ids=["dense", "depthwise"])
def test_cells_are_convolved_as_whole_maps_would_be(monkeypatch, side, kernel, backend):
    monkeypatch.setattr(module.jax, "default_backend", lambda: backend)
    x, kernel = normal(0, 2, 3, side, side, 4), normal(1, *kernel)
    cotangent = normal(2, 2, 3, side, side, max(kernel.shape[2:]))

    @jax.jit
    def run(x, kernel, cotangent):
        y, transposed = jax.vjp(CELLS.convolve, x, kernel)
        return y, *transposed(cotangent)

    def whole(x, kernel):
        y = jax.lax.conv_general_dilated(
            CELLS.place(x),
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4 // kernel.shape[2],
        )
        return CELLS.take(y)

    @jax.jit
    def expect(x, kernel, cotangent):
        y, transposed = jax.vjp(whole, x, kernel)
        return y, *transposed(cotangent)

    inputs = x, kernel, cotangent
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), run(*inputs), expect(*inputs))


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (7, 7, 1, 4)], ids=["dense", "depthwise"])
def test_devices_exchange_nothing_but_the_kernels_gradient(shape):
    mesh = make_mesh(ConfigDict(dict(data=4, fsdp=2, tensor=1)))
    ids = jnp.argsort(normal(0, 8, 6), axis=1)[:, :3].astype(jnp.int32)
    inputs = normal(1, 8, 3, 2, 2, 4), normal(2, *shape), Cells(Visible.from_ids(ids, 6), GRID)

    def loss(x, kernel, cells):
        return jnp.square(split_over_batch(cells.convolve(split_over_batch(x), kernel))).sum()

    gradients = jax.grad(loss, argnums=(0, 1))
    split, whole = batch_sharding(mesh), replicated(mesh)
    compiled = jax.jit(on_mesh(gradients, mesh), in_shardings=(split, whole, split), out_shardings=(split, whole))
    text = compiled.lower(*inputs).compile().as_text()
    assert "all-reduce" in text
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), compiled(*inputs), gradients(*inputs)
    )
