import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.training import sharding
from tests.tiny import tiny_config
from tests.training.runs import TinyRun, single_device_mesh


@pytest.fixture(scope="module")
def run():
    return TinyRun(tiny_config("ijepa"), single_device_mesh())


@pytest.fixture(scope="module")
def mae():
    """The state of MAE after eight steps and the metrics of each."""
    return TinyRun(tiny_config("mae"), single_device_mesh()).train(8)


@pytest.fixture(scope="module")
def mae_losses(mae):
    return [row["loss"] for row in mae[1][:3]]


def losses(run, steps=3):
    return [row["loss"] for row in run.train(steps)[1]]


@pytest.mark.parametrize("sizes", [dict(data=8), dict(data=1, fsdp=8), dict(data=1, fsdp=2, tensor=4)])
def test_every_mesh_gives_the_same_losses(sizes, mae_losses):
    config = tiny_config("mae", {f"mesh.{k}": v for k, v in sizes.items()})
    run = TinyRun(config, sharding.make_mesh(config.mesh))
    np.testing.assert_allclose(losses(run), mae_losses, rtol=2e-5)


def test_accumulation_equals_one_big_batch(mae_losses):
    run = TinyRun(tiny_config("mae", {"accumulation_steps": 4}), single_device_mesh())
    np.testing.assert_allclose(losses(run), mae_losses, rtol=2e-5)


def test_metrics_are_complete(run):
    _, rows = run.train(1)
    expected = {"loss", "terms/prediction", "lr", "weight_decay", "grad_norm", "update_norm", "param_norm", "finite"}
    assert expected <= set(rows[0])
    assert rows[0]["finite"] == 1.0


def test_norms_are_those_of_logged_updates_and_the_last(mae):
    some = TinyRun(tiny_config("mae", {"log.every": "3 steps"}), single_device_mesh())
    state, all_rows = mae
    same, some_rows = some.train(8)
    for number, (all_row, row) in enumerate(zip(all_rows, some_rows, strict=True), start=1):
        for name in ("update_norm", "param_norm"):
            assert np.isfinite(all_row[name])
            expected = all_row[name] if number in (3, 6, 8) else np.nan
            np.testing.assert_allclose(row[name], expected, rtol=1e-6, err_msg=f"{name} of update {number}")
    jax.tree.map(np.testing.assert_array_equal, same.variables, state.variables)


def test_a_non_finite_batch_changes_nothing_but_the_counters(run):
    state = run.fresh_state()
    batch = run.batch()
    batch["image"] = batch["image"].at[3, 5, 5].set(jnp.nan)
    after, metrics = run.step(state, batch)
    assert not bool(metrics["finite"])
    jax.tree.map(np.testing.assert_array_equal, after.variables, state.variables)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)
    assert (int(after.step), int(after.skipped), int(after.consecutive_skipped)) == (1, 1, 1)
    again, _ = run.step(after, batch)
    assert (int(again.skipped), int(again.consecutive_skipped)) == (2, 2)
    healthy, _ = run.step(again, run.batch())
    assert (int(healthy.skipped), int(healthy.consecutive_skipped)) == (2, 0)


def test_the_teacher_follows_by_the_schedule(run):
    before = run.fresh_state()
    after, _ = run.step(before, run.batch())
    path = ("encoder", "patch_embed", "projection", "bias")
    old, new, teacher = before.variables["teacher"], after.variables["params"], after.variables["teacher"]
    for key in path:
        old, new, teacher = old[key], new[key], teacher[key]
    # At step 0 the momentum is 0.996.
    np.testing.assert_allclose(teacher, 0.996 * old + 0.004 * new, rtol=1e-5, atol=1e-8)
