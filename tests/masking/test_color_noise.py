import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from mim_jax.errors import ConfigError, DataError
from mim_jax.masking import color_noise
from mim_jax.masking.color_noise import Windows, cut_windows, draw_windows, load_stack, noise_mask

SIGMA, BAND = 1.5, (0.5, 2.0)


@functools.partial(jax.jit, static_argnames=("batch", "grid", "color", "sigma", "band", "field"))
def draw(seed, batch, grid, color, *, sigma=SIGMA, band=BAND, field):
    return color_noise.color_noise(jax.random.key(seed), batch, grid, color, sigma=sigma, band=band, field=field)


def response(color, frequency):
    """The sheet's frequency responses; `frequency` in cycles per patch."""
    red, low, high = (np.exp(-2 * np.pi**2 * s**2 * frequency**2) for s in (SIGMA, *BAND))
    filters = dict(white=np.ones_like(red), red=red, blue=1 - red, green=low - high, purple=1 - low + high)
    return filters[color]


def radial(power):
    """Mean of `[n, n]` over rings of equal rounded distance from DC, and the number of points in each."""
    n = len(power)
    index = np.fft.fftfreq(n) * n
    ring = np.rint(np.hypot(index[:, None], index[None, :])).astype(int)
    counts = np.bincount(ring.ravel())
    return np.bincount(ring.ravel(), power.ravel())[: n // 2] / counts[: n // 2], counts[: n // 2]


@pytest.mark.parametrize("color", color_noise.COLORS)
def test_the_measured_spectrum_is_the_filters(color):
    draws, n = 300, 32
    noise = np.asarray(draw(0, draws, (n, n), color, field=n), np.float64)
    measured, counts = radial((np.abs(np.fft.fft2(noise)) ** 2).mean(axis=0) / n**2)
    index = np.fft.fftfreq(n)
    expected, _ = radial(response(color, np.hypot(index[:, None], index[None, :])) ** 2)
    # The power of one wave is exponential, each comes twice: five standard errors.
    error = 5.0 * np.sqrt(2.0 / (draws * counts))
    np.testing.assert_array_less(np.abs(measured - expected), error * expected + 1e-9)
    if color == "red":
        assert (np.diff(measured[1:8]) < 0).all()  # DC is one wave alone: too few draws to compare
    if color == "blue":
        assert measured[0] < 1e-9 and (np.diff(measured[:6]) > 0).all()
    peak = n * np.sqrt(np.log(BAND[1] ** 2 / BAND[0] ** 2) / (2 * np.pi**2 * (BAND[1] ** 2 - BAND[0] ** 2)))
    if color == "green":
        assert measured[0] < 1e-9 and abs(measured.argmax() - peak) <= 1
    if color == "purple":
        assert abs(measured.argmin() - peak) <= 1


def test_a_window_is_a_part_of_its_field():
    whole, part = draw(1, 3, (32, 32), "green", field=32), draw(1, 3, (7, 5), "green", field=32)
    np.testing.assert_allclose(part, whole[:, :7, :5], atol=1e-6)


@functools.cache
def masks_of(color, band=BAND):
    """400 masks of 14x14 at 0.75, cut from fields of 64x64."""
    noise = draw(2, 400, (14, 14), color, band=band, field=64)
    return np.asarray(noise_mask(noise, 49).mask).reshape(400, 14, 14)


def autocorrelation(mask):
    """Between neighbours, of masks that all hide three quarters."""
    x = mask - 0.75
    pairs = [x[:, 1:] * x[:, :-1], x[:, :, 1:] * x[:, :, :-1]]
    return np.mean([p.mean() for p in pairs]) / (0.75 * 0.25)


# What the sheet measured with 400 draws of the same setting, and a band of (1, 2).
MEASURED = {
    "white": (-0.005, 6.9),
    "red": (0.66, 32.0),
    "blue": (-0.05, 5.2),
    "green": (0.41, 15.9),
    "purple": (-0.07, 5.3),
}


@pytest.mark.parametrize("color", color_noise.COLORS)
def test_masks_have_the_shape_of_their_colour(color):
    correlation, blob = MEASURED[color]
    mask = masks_of(color, (1.0, 2.0))
    assert (mask.sum(axis=(1, 2)) == 147).all()
    assert autocorrelation(mask) == pytest.approx(correlation, abs=0.02)
    largest = [np.bincount(ndimage.label(~m)[0].ravel())[1:].max() for m in mask]
    assert np.mean(largest) == pytest.approx(blob, rel=0.05)


def test_the_colours_cluster_in_the_papers_order():
    red, green, white, blue, purple = (
        autocorrelation(masks_of(c)) for c in ("red", "green", "white", "blue", "purple")
    )
    assert red > 0.5 > green > 0.05 > white > -0.02 > blue > purple


def test_every_position_is_hidden_equally_often():
    mask = np.asarray(noise_mask(draw(3, 4000, (14, 14), "green", field=32), 49).mask)
    p_values = [stats.binomtest(int(hidden), 4000, 0.75).pvalue for hidden in mask.sum(axis=0)]
    assert min(p_values) > 1e-5


def official_sampler(stack, passes, batch, window, keep):
    """Steps 1 to 4 of colormae.md in PyTorch, with the draws of each pass given."""
    windows = []
    for top, left, flip_columns, flip_rows in passes:
        w = stack[:, top : top + window, left : left + window]
        w = w.flip(-1) if flip_columns else w
        w = w.flip(-2) if flip_rows else w
        windows.append(w / w.amax(dim=(1, 2))[:, None, None])
    noise = torch.cat(windows)[:batch].flatten(1)
    ids_shuffle = noise.argsort(dim=1, descending=True)
    return ids_shuffle[:, :keep], ids_shuffle.argsort(dim=1)


@pytest.mark.parametrize("offset", [0.0, -9.0], ids=["zero_mean", "all_negative"])
def test_the_official_sampler(offset):
    stack = torch.randn(5, 20, 20, generator=torch.Generator().manual_seed(0)) + offset
    passes = [(0, 6, False, True), (6, 0, True, False), (3, 4, True, True)]
    batch = 12  # two whole passes and two images
    ids_keep, ids_restore = official_sampler(stack, passes, batch, 14, 49)
    per_image = [passes[image // 5] for image in range(batch)]
    top, left, flip_columns, flip_rows = (np.array(column) for column in zip(*per_image, strict=True))
    field = np.arange(batch, dtype=np.int32) % 5
    windows = Windows(field, top.astype(np.int32), left.astype(np.int32), flip_columns, flip_rows)
    noise = jax.jit(cut_windows, static_argnums=2)(jnp.asarray(stack.numpy()), windows, (14, 14))
    masks = noise_mask(noise, 49)
    np.testing.assert_array_equal(masks.ids_keep, ids_keep)
    np.testing.assert_array_equal(masks.ids_restore, ids_restore)
    rows = np.asarray(noise).reshape(batch, -1)
    sign = -1 if offset else 1  # a negative maximum turns the order round
    kept, hidden = (np.take_along_axis(sign * rows, np.asarray(i), axis=1) for i in (masks.ids_keep, masks.ids_hidden))
    assert (np.diff(kept, axis=1) <= 0).all() and (kept.min(axis=1) >= hidden.max(axis=1)).all()


def test_groups_share_a_window_and_start_at_the_first_field():
    windows = draw_windows(jax.random.key(0), 10, (6, 20, 22), (14, 14), 4)
    np.testing.assert_array_equal(windows.field, [0, 1, 2, 3] * 2 + [0, 1])
    for drawn in windows[1:]:
        for group in np.split(np.asarray(drawn), [4, 8]):
            assert len(set(group.tolist())) == 1
    whole = draw_windows(jax.random.key(0), 10, (6, 20, 22), (14, 14), 512)
    np.testing.assert_array_equal(whole.field, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3])


def test_without_groups_all_fields_offsets_and_flips_occur():
    windows = draw_windows(jax.random.key(1), 2000, (3, 16, 15), (14, 14), None)
    assert [sorted(set(np.asarray(drawn).tolist())) for drawn in windows] == [
        [0, 1, 2],
        [0, 1, 2],
        [0, 1],
        [False, True],
        [False, True],
    ]
    joint = np.stack([np.asarray(drawn, np.int32) for drawn in windows])
    assert len(set(map(tuple, joint.T.tolist()))) == 3 * 3 * 2 * 2 * 2  # independently


def test_a_stack_is_the_first_array_of_its_file(tmp_path):
    np.savez(tmp_path / "green.npz", np.ones((2, 15, 14)), np.zeros(3))
    stack = load_stack(str(tmp_path / "green.npz"), (14, 14))
    assert stack.dtype == np.float32 and stack.shape == (2, 15, 14)


def test_unusable_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.npz.*noise\.colors"):
        load_stack(str(tmp_path / "nowhere.npz"), (14, 14))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"text\.npz.*no npz"):
        load_stack(str(tmp_path / "text.npz"), (14, 14))
    for name, array in dict(small=np.ones((2, 13, 14)), flat=np.ones(7), nan=np.full((2, 14, 14), np.nan)).items():
        np.savez(tmp_path / f"{name}.npz", array)
        with pytest.raises(DataError, match=rf"{name}\.npz.*at least 14x14"):
            load_stack(str(tmp_path / f"{name}.npz"), (14, 14))
    np.savez(tmp_path / "objects.npz", np.array([{}], object))
    with pytest.raises(DataError, match=r"objects\.npz"):
        load_stack(str(tmp_path / "objects.npz"), (14, 14))
