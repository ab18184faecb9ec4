import jax
import numpy as np
import pytest

from mim_jax.models.densify import Densify

ACTIVE = np.array([[[1, 0], [0, 1]], [[1, 1], [0, 0]]], bool)


def make(norm, widths=(6, 3)):
    """The layers, their variables, and maps `[2, 2, 2, 6]` and `[2, 4, 4, 5]`, zero at hidden sites."""
    rng = np.random.default_rng(0)
    maps = [rng.normal(1.0, 2.0, shape).astype(np.float32) for shape in ((2, 2, 2, 6), (2, 4, 4, 5))]
    maps = [np.where(everywhere(ACTIVE, side), x, 0.0 * x) for side, x in enumerate(maps, 1)]
    densify = Densify(widths, norm)
    return densify, densify.init(jax.random.key(1), maps, ACTIVE), maps


def everywhere(active, side):
    return active.repeat(side, axis=1).repeat(side, axis=2)[..., None]


@pytest.mark.parametrize(("norm", "axis", "epsilon"), [("batch_norm", 0, 1e-5), ("layer_norm", 1, 1e-6)])
def test_a_map_of_the_right_width_is_not_projected_and_shows_its_token(norm, axis, epsilon):
    densify, variables, maps = make(norm)
    assert set(variables["params"]["map1"]) == {"mask_token", "norm"}
    (dense, _), _ = densify.apply(variables, maps, ACTIVE, train=True, mutable=["batch_stats"])
    dense, token = np.asarray(dense), variables["params"]["map1"]["mask_token"]
    np.testing.assert_array_equal(dense[~ACTIVE], np.broadcast_to(token, (4, 6)))
    rows = maps[0][ACTIVE]
    centered, variance = rows - rows.mean(axis=axis, keepdims=True), rows.var(axis=axis, keepdims=True)
    np.testing.assert_allclose(dense[ACTIVE], centered / np.sqrt(variance + epsilon), rtol=1e-5, atol=1e-5)


def test_shapes_and_kernel_sizes():
    densify, variables, maps = make("batch_norm", (4, 3))
    assert [x.shape for x in densify.apply(variables, maps, ACTIVE)] == [(2, 2, 2, 4), (2, 4, 4, 3)]
    sizes = [variables["params"][f"map{number}"]["projection"]["kernel"].shape for number in (1, 2)]
    assert sizes == [(1, 1, 6, 4), (3, 3, 5, 3)]
    assert Densify((4,), "batch_norm").init(jax.random.key(0), maps, ACTIVE)["params"].keys() == {"map1"}


def test_running_statistics_are_of_visible_sites():
    densify, variables, maps = make("batch_norm")
    _, changed = densify.apply(variables, maps, ACTIVE, train=True, mutable=["batch_stats"])
    rows = maps[1][everywhere(ACTIVE, 2)[..., 0]]
    running = changed["batch_stats"]["map2"]["norm"]
    np.testing.assert_allclose(running["mean"], 0.1 * rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * rows.var(axis=0, ddof=1), rtol=1e-5)
