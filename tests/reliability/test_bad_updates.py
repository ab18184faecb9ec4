"""NaN in a batch, NaN in a gradient, a spike: the update is skipped and counted, or the run stops with a report."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import data
from mim_jax.data.order import TrainOrder
from mim_jax.errors import ConfigError, TrainingError
from mim_jax.training.checkpoint import Checkpointer
from mim_jax.training.loop import Trainer
from tests.processes import losses, rows
from tests.tiny import tiny_config

BAD_STEP = 30  # the step whose batch is spoilt, counted from 0
STEPS = {"duration": "40 steps", "checkpoint.every": "20 steps"}


def nan_pixel(image):
    image[3, 5, 5] = np.nan


def infinite_pixel(image):
    image[0, 0, 0] = np.inf


def a_thousandfold(image):
    image *= 1e3


def train(workdir, spoil, bad_steps=(BAD_STEP,), **overrides):
    """A tiny run in which the batches of `bad_steps` are spoilt."""
    changes = {**STEPS, "norm_pix_loss": False, **overrides}
    config = tiny_config("mae", changes)

    def batches(start):
        for step, batch in enumerate(data.train_batches(config, start_step=start), start):
            if step in bad_steps:
                spoil(batch["image"])
            yield batch

    return Trainer(config, workdir, batches=batches).run()


def assert_finite(tree):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("spoil", [nan_pixel, infinite_pixel])
def test_skipping_counts_and_goes_on(spoil, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        state = train(tmp_path, spoil, nonfinite="skip")
    assert "Step 31 is not finite" in caplog.text and "was skipped (1 in a row)" in caplog.text
    assert (int(state.skipped), int(state.consecutive_skipped), int(state.step)) == (1, 0, 40)
    assert [row["skipped"] for row in rows(tmp_path)] == [0.0] * 30 + [1.0] * 10
    assert_finite((state.variables, state.opt_state))


def test_stopping_leaves_a_report_and_the_last_good_state(tmp_path):
    with pytest.raises(TrainingError, match=r"Step 31 is not finite \(loss nan.*are under .*diagnostics"):
        train(tmp_path, nan_pixel)
    report = json.loads((tmp_path / "diagnostics" / "skipped_00000031.json").read_text())
    assert report["step"] == 31
    assert report["metrics"]["loss"] == "nan"
    assert report["positions"] == [30 * 16, 31 * 16]
    order = TrainOrder(0, 64, 16)
    assert report["examples"] == order.indices(order.positions(30, 0, 16)).tolist()
    assert report["rng"] == "jax.random.fold_in(jax.random.key(0), 30)"
    saved = Checkpointer(tmp_path / "diagnostics" / "step_00000031", read_only=True)
    assert_finite(saved.arrays(saved.steps()[-1]))
    assert Checkpointer(tmp_path, read_only=True).steps() == [20]


def test_a_run_that_only_skips_is_stopped(tmp_path):
    with pytest.raises(TrainingError, match="Step 33 is not finite"):
        train(tmp_path, nan_pixel, bad_steps=range(BAD_STEP, 40), nonfinite="skip", max_skipped=2)


def test_a_nan_in_the_gradient_alone_is_noticed(tmp_path, monkeypatch):
    config = tiny_config("mae", {**STEPS, "nonfinite": "skip"})
    trainer = Trainer(config, tmp_path)
    loss = trainer.objective.loss

    def with_a_kink(variables, batch, masks, rng, clock):
        value, aux = loss(variables, batch, masks, rng, clock)
        weight = variables["params"]["encoder"]["norm"]["scale"][0]
        # The square root is 0 there and its slope infinite: the loss stays as it was, its gradient does not.
        kink = jax.lax.cond(clock.step == BAD_STEP, lambda w: jnp.sqrt(w * 0.0), lambda w: w * 0.0, weight)
        return value + kink, aux

    monkeypatch.setattr(trainer.objective, "loss", with_a_kink)
    state = trainer.run()
    assert np.isfinite(list(losses(tmp_path).values())).all()
    assert int(state.skipped) == 1
    assert_finite((state.variables, state.opt_state))


def test_a_spike_is_skipped_when_that_is_asked_for(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        state = train(tmp_path / "skipped", a_thousandfold, nonfinite="skip", spike_factor=10.0)
    assert "Step 31 has a gradient norm of" in caplog.text and "over 10 times the usual" in caplog.text
    assert int(state.skipped) == 1
    assert int(train(tmp_path / "taken", a_thousandfold).skipped) == 0
    after = [losses(tmp_path / name)[35] for name in ("skipped", "taken")]
    assert after[0] < after[1]


def test_a_spike_can_stop_the_run(tmp_path):
    with pytest.raises(TrainingError, match=r"Step 31 has a gradient norm of .* set optimizer\.clip_norm"):
        train(tmp_path, a_thousandfold, spike_factor=10.0)


def test_a_factor_below_one_makes_no_sense(tmp_path):
    with pytest.raises(ConfigError, match="spike_factor is 0.5; it must exceed 1"):
        train(tmp_path, nan_pixel, spike_factor=0.5)
