"""The same work directory, another config: refused by name, or allowed where that was asked for."""

import pytest

from mim_jax.errors import ConfigError
from mim_jax.training.loop import Trainer
from tests.processes import losses
from tests.reliability.conftest import SETTINGS
from tests.tiny import tiny_config

CHANGES_THE_MODEL = [
    ("mae", {"model.depth": 2}, r"model\.depth 1 -> 2\); use another workdir"),
    ("mae", {"decoder.width": 32}, r"decoder\.width 16 -> 32"),
    ("mae", {"mask_ratio": 0.5}, r"mask_ratio 0.6 -> 0.5\); use another workdir"),
    ("mae", {"seed": 1}, r"seed 0 -> 1"),
    ("mae", {"batch_size": 32}, r"batch_size 16 -> 32"),
    ("simmim", {}, r"method 'mae' -> 'simmim'"),
]
CHANGES_THE_TRAINING = [
    ({"optimizer.name": "lion"}, r"optimizer\.name 'adamw' -> 'lion'"),
    ({"optimizer.lr": 5e-4}, r"optimizer\.lr 0.001 -> 0.0005"),
    ({"duration": "8 steps"}, r"duration '6 steps' -> '8 steps'"),
    ({"optimizer.lr": 5e-4, "schedule.name": "constant"}, r"optimizer\.lr .*, schedule\.name 'cosine' -> 'constant'"),
]


def resume(workdir, changes, method="mae", **arguments):
    settings = {**SETTINGS, "duration": "6 steps", **changes}
    return Trainer(tiny_config(method, settings), workdir, **arguments).run()


def contents(workdir):
    return {path: path.read_bytes() for path in sorted(workdir.rglob("*")) if path.is_file() and path.suffix != ".lock"}


@pytest.mark.parametrize(("method", "changes", "message"), CHANGES_THE_MODEL)
@pytest.mark.parametrize("allowed", [False, True])
def test_another_model_is_always_refused(method, changes, message, allowed, copied):
    before = contents(copied)
    with pytest.raises(ConfigError, match=message):
        resume(copied, changes, method, allow_config_change=allowed)
    assert contents(copied) == before


@pytest.mark.parametrize(("changes", "message"), CHANGES_THE_TRAINING)
def test_another_training_has_to_be_asked_for(changes, message, copied):
    before = contents(copied)
    with pytest.raises(ConfigError, match=message + r".*pass --allow_config_change"):
        resume(copied, changes)
    assert contents(copied) == before


def test_a_longer_run_at_another_rate_goes_on_when_asked(copied):
    resume(copied, {"duration": "8 steps", "optimizer.lr": 5e-4}, allow_config_change=True)
    assert list(losses(copied)) == list(range(1, 9))


def test_another_optimiser_does_not_take_the_old_ones_moments(copied):
    with pytest.raises(ConfigError, match="holds other arrays than this config builds: only in the checkpoint"):
        resume(copied, {"optimizer.name": "lion", "duration": "8 steps"}, allow_config_change=True)
    assert not (copied / "damaged").exists()


def test_what_is_watched_may_change(copied):
    changes = {"log.every": "2 steps", "checkpoint.keep": 2, "watchdog_minutes": None}
    assert int(resume(copied, changes).step) == 6
