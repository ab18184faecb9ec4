import math

import numpy as np
import pytest

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.training.duration import RunLength
from mim_jax.training.schedules import learning_rate_schedule, peak_learning_rate, weight_decay_schedule

LENGTH = RunLength(num_examples=1000, batch_size=10)
TOTAL = 1000


@pytest.fixture
def config():
    config = mim_jax.default_config(method="mae")
    config.batch_size = 10
    config.optimizer.lr_reference_batch = None
    config.optimizer.lr = 2.0
    config.schedule.warmup = "1 epoch"
    return config


def at(schedule, step):
    return float(schedule(np.int32(step)))


def test_lr_scales_with_the_batch():
    config = mim_jax.default_config(method="mae")
    config.batch_size = 4096
    assert peak_learning_rate(config) == pytest.approx(2.4e-3)  # MAE's 1.5e-4 x 4096 / 256


def test_cosine_has_the_papers_shape(config):
    config.schedule.end_lr = 0.5
    schedule = learning_rate_schedule(config, TOTAL, LENGTH)
    assert at(schedule, 0) == 0.0
    assert at(schedule, 50) == pytest.approx(1.0)
    assert at(schedule, 100) == pytest.approx(2.0)
    assert at(schedule, 550) == pytest.approx((2.0 + 0.5) / 2)
    assert at(schedule, TOTAL) == pytest.approx(0.5)


def test_beits_warmup_reaches_the_peak_a_step_earlier(config):
    config.schedule.warmup_reaches_peak = True
    config.schedule.start_lr = 0.1
    schedule = learning_rate_schedule(config, TOTAL, LENGTH)
    np.testing.assert_allclose([at(schedule, i) for i in range(100)], np.linspace(0.1, 2.0, 100), rtol=1e-6)
    assert at(schedule, 100) == pytest.approx(2.0)


def test_timms_cosine_counts_from_the_start(config):
    config.schedule.cosine_includes_warmup = True
    schedule = learning_rate_schedule(config, TOTAL, LENGTH)
    assert at(schedule, 100) == pytest.approx(1.0 * (1 + math.cos(math.pi * 0.1)))


def test_a_run_may_stop_on_the_way_down(config):
    config.schedule.length = "20 epochs"  # of 100 steps: twice the run
    schedule = learning_rate_schedule(config, TOTAL, LENGTH)
    assert at(schedule, 100) == pytest.approx(2.0)
    assert at(schedule, TOTAL) == pytest.approx(1.0 + math.cos(math.pi * 900 / 1900))
    config.schedule.length = "5 lightyears"
    with pytest.raises(ConfigError, match="schedule.length"):
        learning_rate_schedule(config, TOTAL, LENGTH)


def test_offset_uses_the_next_steps_rate(config):
    config.schedule.start_lr = 0.4
    config.schedule.offset = 1
    schedule = learning_rate_schedule(config, TOTAL, LENGTH)
    assert at(schedule, 0) == pytest.approx(0.4 + (2.0 - 0.4) / 100)  # I-JEPA: lr_1 = start + (ref - start) / warm


def test_a_negative_offset_repeats_the_first_rate(config):
    config.schedule.start_lr = 0.4
    config.schedule.offset = -1
    schedule = learning_rate_schedule(config, TOTAL, LENGTH)
    first = 0.4 + (2.0 - 0.4) / 100
    assert [at(schedule, step) for step in range(3)] == pytest.approx([0.4, 0.4, first])


def test_linear_falls_evenly_to_its_end(config):
    config.schedule.update(name="linear", end_lr=0.5)
    schedule = learning_rate_schedule(config, TOTAL, LENGTH)
    at_steps = [at(schedule, step) for step in (50, 100, 325, 775, TOTAL)]
    assert at_steps == pytest.approx([1.0, 2.0, 1.625, 0.875, 0.5])
    config.schedule.update(warmup="0 steps", end_lr=0.0)
    schedule = learning_rate_schedule(config, TOTAL, LENGTH)  # the first update has the peak, as in transformers
    assert [at(schedule, step) for step in (0, 1, TOTAL - 1)] == pytest.approx([2.0, 1.998, 0.002], abs=1e-6)
    config.schedule.length = "20 epochs"
    assert at(learning_rate_schedule(config, TOTAL, LENGTH), 500) == pytest.approx(1.5)


def test_step_schedule_multiplies_at_milestones(config):
    config.schedule.update(name="step", milestones=("5 epochs", "9 epochs"), gamma=0.1)
    schedule = learning_rate_schedule(config, TOTAL, LENGTH)
    assert [at(schedule, s) for s in (499, 500, 899, 900)] == pytest.approx([2.0, 0.2, 0.2, 0.02])


def test_rsqrt_and_constant(config):
    config.schedule.name = "rsqrt"
    assert at(learning_rate_schedule(config, TOTAL, LENGTH), 400) == pytest.approx(2.0 * math.sqrt(100 / 400))
    config.schedule.name = "constant"
    assert at(learning_rate_schedule(config, TOTAL, LENGTH), 999) == pytest.approx(2.0)


def test_weight_decay_follows_a_cosine_to_its_end(config):
    config.optimizer.weight_decay = 0.04
    assert at(weight_decay_schedule(config, TOTAL), 700) == pytest.approx(0.04)
    config.optimizer.weight_decay_end = 0.4
    schedule = weight_decay_schedule(config, TOTAL)
    assert [at(schedule, s) for s in (0, 500, 1000)] == pytest.approx([0.04, 0.22, 0.4])


def test_the_last_step_may_have_the_end(config):
    config.optimizer.update(weight_decay=0.04, weight_decay_end=0.2)
    config.schedule.end_lr = 0.5
    for config.schedule.reaches_end in (False, True):
        rate, decay = learning_rate_schedule(config, TOTAL, LENGTH), weight_decay_schedule(config, TOTAL)
        assert (at(rate, TOTAL - 1) == 0.5) == config.schedule.reaches_end
        assert (at(decay, TOTAL - 1) == pytest.approx(0.2, abs=1e-8)) == config.schedule.reaches_end
        assert at(rate, TOTAL - 2) > at(rate, TOTAL - 1)
        assert [at(rate, 100), at(decay, 0)] == pytest.approx([2.0, 0.04])


def test_mistakes_are_named(config):
    with pytest.raises(ConfigError, match=r"schedule\.warmup.*longer than duration"):
        learning_rate_schedule(config, 50, LENGTH)
    config.schedule.name = "cosin"
    with pytest.raises(ConfigError, match=r"schedule\.name.*cosine"):
        learning_rate_schedule(config, TOTAL, LENGTH)


def test_lr_scales_with_the_root_of_the_batch(config):
    config.optimizer.update(lr=1.5e-4, lr_reference_batch=16, lr_scaling="sqrt")
    peaks = []
    for config.batch_size in (4096, 1024):
        peaks.append(peak_learning_rate(config))
    assert peaks == pytest.approx([2.4e-3, 1.2e-3])  # LUT's 1.5e-4 * sqrt(batch) / 4


def test_an_unknown_scaling_is_refused(config):
    config.optimizer.lr_scaling = "cubic"
    with pytest.raises(ConfigError, match=r"optimizer\.lr_scaling is 'cubic'; choose 'linear' or 'sqrt'"):
        learning_rate_schedule(config, TOTAL, LENGTH)
