import jax
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.layers.position import PositionTable, RelativeBias, relative_index, resize_position_table, sincos_table


def test_first_half_encodes_the_column_second_the_row():
    table = sincos_table((3, 5), 16).reshape(3, 5, 16)
    assert np.ptp(table[:, :, :8], axis=0).max() == 0 and np.ptp(table[:, :, :8], axis=1).max() > 0
    assert np.ptp(table[:, :, 8:], axis=1).max() == 0 and np.ptp(table[:, :, 8:], axis=0).max() > 0


def test_with_the_rows_first_the_halves_are_exchanged():
    table, exchanged = sincos_table((3, 5), 16), sincos_table((3, 5), 16, rows_first=True)
    np.testing.assert_array_equal(exchanged, np.concatenate([table[:, 8:], table[:, :8]], axis=1))
    module = PositionTable((3, 5), 16, "sincos_rows_first")
    assert not module.init(jax.random.key(0))
    np.testing.assert_array_equal(module.apply({})[0], exchanged)


def test_each_half_is_sines_then_cosines():
    table = sincos_table((3, 5), 16).reshape(3, 5, 16)
    omega = 10000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(table[2, 3, :4], np.sin(3 * omega), rtol=1e-6)
    np.testing.assert_allclose(table[2, 3, 4:8], np.cos(3 * omega), rtol=1e-6)
    np.testing.assert_allclose(table[2, 3, 8:12], np.sin(2 * omega), rtol=1e-6)


def test_widths_that_cannot_be_quartered_are_refused():
    with pytest.raises(ConfigError, match="multiple of 4"):
        sincos_table((2, 2), 18)


@pytest.mark.parametrize(("source", "target"), [((14, 14), (32, 32)), ((7, 5), (3, 9)), ((4, 4), (4, 4))])
def test_resizing_equals_torch(source, target):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(source[0] * source[1], 6)).astype(np.float32)
    grid = torch.tensor(table).reshape(1, *source, 6).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, size=target, mode="bicubic", align_corners=False)
    expected = resized.permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    np.testing.assert_allclose(resize_position_table(table, source, target), expected, atol=2e-6)


def test_a_learned_table_has_the_class_tokens_row_first():
    module = PositionTable((2, 3), 8, "sincos_learned", class_token=True)
    variables = module.init(jax.random.key(0))
    table, row = module.apply(variables)
    assert variables["params"]["table"].shape == (7, 8)
    np.testing.assert_array_equal(table, sincos_table((2, 3), 8))
    np.testing.assert_array_equal(row, np.zeros(8))


def test_fixed_tables_are_no_parameters():
    assert not PositionTable((2, 3), 8, "sincos").init(jax.random.key(0))


def test_relative_index_of_patches_and_class_token():
    index = relative_index((14, 14), True)
    assert index.shape == (197, 197)
    assert (index[0, 1:] == 729).all() and (index[1:, 0] == 730).all() and index[0, 0] == 731
    query, key = 1 + 3 * 14 + 5, 1 + 10 * 14 + 2
    assert index[query, key] == (3 - 10 + 13) * 27 + (5 - 2 + 13)


def test_relative_bias_is_zero_at_first_and_per_head():
    module = RelativeBias((2, 2), heads=3)
    variables = module.init(jax.random.key(0))
    assert variables["params"]["table"].shape == (9 + 3, 3)
    assert not np.any(module.apply(variables))
