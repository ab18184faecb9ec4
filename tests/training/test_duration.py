import pytest

from mim_jax.errors import ConfigError
from mim_jax.training.duration import RunLength

LENGTH = RunLength(num_examples=1000, batch_size=10)


@pytest.mark.parametrize(
    ("text", "steps"),
    [("600 steps", 600), ("1 step", 1), ("3 epochs", 300), ("0.5 epoch", 50), ("1e4 images", 1000), ("0 epochs", 0)],
)
def test_durations_are_read_as_written(text, steps):
    assert LENGTH.steps(text, "duration") == steps


def test_partial_steps_round_down():
    assert RunLength(num_examples=1281167, batch_size=4096).steps("800 epochs", "duration") == 800 * 1281167 // 4096


@pytest.mark.parametrize("text", ["600", "ten epochs", "-1 epochs", "5 minutes", ""])
def test_anything_else_is_refused_by_key(text):
    with pytest.raises(ConfigError, match=r"schedule\.warmup"):
        LENGTH.steps(text, "schedule.warmup")


def test_a_duration_below_one_step_is_refused():
    with pytest.raises(ConfigError, match="less than one step"):
        LENGTH.steps("5 images", "log.every")
