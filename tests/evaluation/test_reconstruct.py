import numpy as np
import pytest

from mim_jax.evaluation.reconstruct import ROWS, draw_panel, shade_hidden, to_rgb, upscale_factor


def pictures(count: int, height: int = 28, width: int = 28, channels: int = 1):
    rng = np.random.default_rng(0)
    return {name: rng.uniform(size=(count, height, width, channels)).astype(np.float32) for name in ROWS}


def find(panel, image, factor):
    """The corner `(x, y)` at which `image [H, W, 3]` uint8 stands enlarged in the panel."""
    array = np.asarray(panel).astype(np.int32)
    enlarged = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1).astype(np.int32)
    height, width = enlarged.shape[:2]
    corner = (array[:, :, 0] == enlarged[0, 0, 0]) & (array[:, :, 2] == enlarged[0, 0, 2])
    for y, x in np.argwhere(corner):
        if np.array_equal(array[y : y + height, x : x + width], enlarged):
            return int(x), int(y)
    raise AssertionError("The image does not stand in the panel.")


@pytest.mark.parametrize(("channels", "titles"), [(1, None), (3, [f"class {i}" for i in range(10)])])
def test_every_image_stands_in_its_row_and_column_pixel_by_pixel(channels, titles):
    rows = pictures(10, channels=channels)
    panel = draw_panel(rows, titles=titles, caption="step 5")
    factor = upscale_factor(28, 28)
    corners = {name: [find(panel, image, factor) for image in to_rgb(rows[name])] for name in ROWS}
    for name in ROWS:
        assert len({y for _, y in corners[name][:8]}) == 1
        assert corners[name][8][1] > corners["reconstruction"][0][1]  # the ninth begins a new block
    for number in range(10):
        assert len({corners[name][number][0] for name in ROWS}) == 1
        assert [corners[name][number][1] for name in ROWS] == sorted(corners[name][number][1] for name in ROWS)
    right = max(x for x, _ in corners["original"]) + 28 * factor
    bottom = corners["reconstruction"][-1][1] + 28 * factor
    assert right < panel.width
    assert bottom < panel.height


def test_rows_are_labelled_on_the_left():
    panel = np.asarray(draw_panel(pictures(2)))
    x, y = find(draw_panel(pictures(2)), to_rgb(pictures(2)["original"])[0], upscale_factor(28, 28))
    assert (panel[y : y + 112, : x - 4] < 128).any()


def test_small_images_are_enlarged_by_whole_numbers():
    assert [upscale_factor(size, size) for size in (28, 32, 64, 96, 224)] == [5, 4, 2, 1, 1]
    assert upscale_factor(16, 64) == 2


def test_pixels_outside_the_range_are_clipped_and_extra_channels_left_out():
    images = np.array([-1.0, 0.5, 2.0, 9.0], np.float32).reshape(1, 1, 1, 4)
    assert to_rgb(images).tolist() == [[[[0, 128, 255]]]]
    assert to_rgb(images[..., 1:3]).tolist() == [[[[128, 128, 128]]]]


def test_hidden_pixels_become_grey_and_visible_ones_stay():
    images = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 4, 1)
    hidden = np.zeros((1, 4, 4), bool)
    hidden[0, :2] = True
    shaded = shade_hidden(images, hidden)
    assert (shaded[0, :2] == 0.5).all()
    np.testing.assert_array_equal(shaded[0, 2:], images[0, 2:])


def test_long_titles_are_cut():
    long, short = draw_panel(pictures(1), titles=["w" * 100]), draw_panel(pictures(1), titles=["w"])
    assert long.size == short.size
