import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mim_jax.layers.cells import Cells
from mim_jax.layers.convolution import convolution
from mim_jax.masking.visible import Visible

GRID = (2, 3)
CELLS = Cells(Visible.from_ids(jnp.asarray([[4, 0, 2], [1, 5, 3]], jnp.int32), 6), GRID)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def by_way_of_maps(cells, x, kernel):
    return cells.take(convolution(cells.place(x), kernel))


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


@pytest.mark.parametrize("side", [1, 2, 8])  # sites of a cell: the window is the tile; larger than the cell; smaller
@pytest.mark.parametrize("kernel", [(3, 3, 4, 6), (7, 7, 1, 4)], ids=["dense", "depthwise"])
def test_cells_are_convolved_as_whole_maps_would_be(side, kernel):
    x, kernel = normal(0, 2, 3, side, side, 4), normal(1, *kernel)

    def run(convolve):
        y, transposed = jax.vjp(convolve, x, kernel)
        return y, *transposed(normal(2, *y.shape))

    ours = jax.jit(lambda: run(CELLS.convolve))()
    expected = jax.jit(lambda: run(lambda *inputs: by_way_of_maps(CELLS, *inputs)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, expected)


def test_devices_exchange_nothing_but_the_kernels_gradient():
    mesh = jax.make_mesh((8,), ("data",))
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    ids = jnp.argsort(normal(0, 8, 6), axis=1)[:, :3].astype(jnp.int32)
    inputs = normal(1, 8, 3, 2, 2, 4), normal(2, 3, 3, 4, 6), Cells(Visible.from_ids(ids, 6), GRID)

    def loss(x, kernel, cells):
        return jnp.square(cells.convolve(x, kernel)).sum(axis=(1, 2, 3, 4))

    def gradients(x, kernel, cells):
        y, transposed = jax.vjp(lambda x, kernel: loss(x, kernel, cells), x, kernel)
        return transposed(jnp.ones_like(y))

    compiled = jax.jit(gradients, in_shardings=(split, whole, split), out_shardings=(split, whole))
    text = compiled.lower(*inputs).compile().as_text()
    assert "all-reduce" in text
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), compiled(*inputs), gradients(*inputs)
    )
