import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.evaluation.linear_fit import stand_ins


def test_held_out_rows_are_taken_by_others_of_the_batch():
    held = np.array([False, True, False, True, False, False])
    rows = stand_ins(held, np.random.default_rng(0))
    np.testing.assert_array_equal(rows[~held], [0, 2, 4, 5])
    assert not held[rows].any()


def test_stand_ins_differ_from_step_to_step():
    held = np.arange(64) < 32
    assert (stand_ins(held, np.random.default_rng(0)) != stand_ins(held, np.random.default_rng(1))).any()


def test_a_batch_of_held_out_images_is_an_error():
    with pytest.raises(ConfigError, match="raise its batch_size or lower its holdout"):
        stand_ins(np.ones(4, bool), np.random.default_rng(0))
