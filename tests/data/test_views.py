"""One example, two views of it."""

import dataclasses
import itertools

import numpy as np
import pytest

from mim_jax import data
from mim_jax.data.loading import ArrayLoader, cut_batch
from mim_jax.data.sources.examples import ArrayExamples
from mim_jax.data.stateless import Stream, second_seed, uniforms
from mim_jax.data.views import train_views
from mim_jax.errors import ConfigError
from tests.data.make import config, encode, photo, photo_folder

STRONG = dict(color_jitter=(0.4, 0.4, 0.2, 0.1), color_jitter_probability=0.8, three_augment=True)
OF_ONE_PICTURE = ("same", "random", "global_to_local", "local_to_global", "weak_strong")
PLAIN = dict(mean=(0.0,) * 3, std=(1.0,) * 3)


def take(batches, count: int) -> list[dict[str, np.ndarray]]:
    found = list(itertools.islice(batches, count))
    batches.close()
    return found


def coordinates(count: int = 32, side: int = 80) -> ArrayExamples:
    """Float images whose channels are each pixel's row and column (as shares of the side) and a constant."""
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    picture = np.stack([(rows + 0.5) / side, (columns + 0.5) / side, np.zeros((side, side))], axis=-1)
    return ArrayExamples("coordinates", np.repeat(picture[None].astype(np.float32), count, axis=0), None)


def show(run, examples) -> dict[str, np.ndarray]:
    """What the loader makes of all examples, at positions 0, 1, ..."""
    views = train_views(run, examples)
    positions = np.arange(len(examples))
    out = {view.name: np.empty((len(examples), 16, 16, 3), np.float32) for view in views}
    ArrayLoader(examples, views).fill(positions, positions, out)
    return out


def corners(image: np.ndarray) -> tuple[float, float, float, float]:
    """Top, left, bottom, right of the part of `coordinates` that an image shows, mirrored or not."""
    rows, columns = image[:, 8, 0], np.sort(image[8, :, 1])
    half = (rows[-1] - rows[0]) / 30, (columns[-1] - columns[0]) / 30
    return rows[0] - half[0], columns[0] - half[1], rows[-1] + half[0], columns[-1] + half[1]


def area(box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


@pytest.fixture(params=["synthetic", "npz", "large arrays", "folder", "pairs", "grey"])
def source(request, tmp_path):
    """Name and channels of every kind of source, with 9 examples or more."""
    if request.param == "synthetic":
        return "synthetic:40", 3
    if request.param == "grey":
        np.savez(tmp_path / "a.npz", image=np.random.default_rng(0).integers(0, 256, (12, 20, 20), np.uint8))
        return f"npz:{tmp_path}/a.npz", 1
    if request.param == "npz":
        np.savez(tmp_path / "a.npz", image=np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), np.uint8))
        return f"npz:{tmp_path}/a.npz", 3
    if request.param == "large arrays":
        np.savez(tmp_path / "a.npz", image=np.stack([photo()] * 9))
        return f"npz:{tmp_path}/a.npz", 3
    if request.param == "pairs":
        for number in range(9):
            for half in (1, 2):
                left = 6 * number + 30 * half
                (tmp_path / f"{number}_{half}.jpg").write_bytes(encode(photo()[:, left : left + 60], "JPEG"))
        return f"pairs:{tmp_path}", 3
    return photo_folder(tmp_path), 3


@pytest.mark.parametrize("views", OF_ONE_PICTURE)
def test_the_stream_is_a_function_of_seed_and_step_for_any_number_of_processes(source, views):
    run = config(source[0], channels=source[1], views=views, **STRONG)
    whole = take(data.train_batches(run), 3)
    for batch in whole:
        assert batch["view2"].shape == batch["image"].shape == (8, 16, 16, source[1])
        assert batch["view2"].dtype == np.float32 and np.isfinite(batch["view2"]).all()
    assert (whole[0]["view2"] == whole[0]["image"]).all() == (views == "same")
    run.data.num_workers, run.data.prefetch = 1, 1
    halves = [take(data.train_batches(run, start_step=1, process_index=i, process_count=2), 2) for i in (0, 1)]
    for step in (0, 1):
        for name in ("image", "view2"):
            joined = np.concatenate([half[step][name] for half in halves])
            np.testing.assert_array_equal(joined, whole[1 + step][name])


@pytest.mark.parametrize("views", ["random", "pairs", "local_to_global"])
def test_the_first_view_is_the_one_there_would_be_alone(source, views):
    if views == "pairs" and not source[0].startswith(("pairs", "synthetic")):
        pytest.skip("this source has no pairs")
    run = config(source[0], channels=source[1])
    (alone,) = take(data.train_batches(run), 1)
    run.data.views = views
    (both,) = take(data.train_batches(run), 1)
    np.testing.assert_array_equal(both["image"], alone["image"])
    assert (both["view2"] != both["image"]).any()


@pytest.mark.parametrize(
    ("views", "whole", "part"), [("global_to_local", "view2", "image"), ("local_to_global", "image", "view2")]
)
def test_local_crops_lie_inside_the_global_one(views, whole, part):
    run = config("", views=views, crop_scale=(0.3, 1.0), local_scale=(0.3, 0.6), interpolation="bilinear", **PLAIN)
    shown = show(run, coordinates())
    shares = []
    for outer, inner in zip(shown[whole], shown[part], strict=True):
        box, inside = corners(outer), corners(inner)
        assert all(inside[i] >= box[i] - 0.03 for i in (0, 1)) and all(inside[i] <= box[i] + 0.03 for i in (2, 3))
        shares.append(area(inside) / area(box))
    # Whole pixels of a 16-pixel crop, with interpolated border pixels: hence the slack.
    assert 0.2 < min(shares) < 0.4 and 0.5 < max(shares) < 0.75


def test_the_local_crop_is_cut_out_of_the_resized_global_one():
    """Not out of the original, which has more detail."""
    run = config("", views="global_to_local", flip=False, **PLAIN)
    noise = np.random.default_rng(0).random((4, 80, 80, 3)).astype(np.float32)
    examples = ArrayExamples("noise", noise, None)
    shown, views = show(run, examples), train_views(run, examples)
    local = cut_batch(shown["view2"], views[1].transform, np.arange(4))
    np.testing.assert_allclose(shown["image"], local, atol=1e-6)


def test_views_are_flipped_independently():
    run = config("", views="random", crop="resize", **PLAIN)
    shown = show(run, coordinates(400))
    flips = [image[:, 0, 0, 1] > image[:, 0, -1, 1] for image in (shown["image"], shown["view2"])]
    for first, second in itertools.product((False, True), repeat=2):
        assert 60 < ((flips[0] == first) & (flips[1] == second)).sum() < 140


def test_two_random_views_with_the_same_draws_are_the_same_view():
    run = config("", views="random", **PLAIN)
    examples = coordinates(4)
    first, second = train_views(run, examples)
    twins = (first, second._replace(transform=dataclasses.replace(second.transform, seed=first.transform.seed)))
    out = {name: np.empty((4, 16, 16, 3), np.float32) for name in ("image", "view2")}
    ArrayLoader(examples, twins).fill(np.arange(4), np.arange(4), out)
    np.testing.assert_array_equal(out["image"], out["view2"])
    np.testing.assert_array_equal(out["image"], show(run, examples)["image"])


def test_uncropped_views_do_not_share_their_pixels():
    run = config("", views="random", crop="none", image_size=16, **PLAIN)
    shown = show(run, coordinates(64, side=16))
    straight = coordinates(1, side=16).images[0]
    for name, seed in (("image", run.seed), ("view2", second_seed(run.seed))):
        flipped = uniforms(seed, Stream.FLIP, np.arange(64), 1) < 0.5
        expected = np.where(flipped[:, :, None, None], straight[:, ::-1], straight)
        np.testing.assert_allclose(shown[name], expected, atol=1e-6)


def test_synthetic_pairs_are_turned_sideways():
    (batch,) = take(data.train_batches(config("synthetic:40", views="pairs", crop="none", flip=False)), 1)
    np.testing.assert_array_equal(batch["view2"], np.roll(batch["image"], -4, axis=2))
    assert (batch["view2"] != batch["image"]).any()


def test_only_the_second_view_is_strong():
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8)
    examples = ArrayExamples("colours", images, None)
    weak, strong = show(config("", views="weak_strong", crop="none", flip=False, **STRONG, **PLAIN), examples).values()
    np.testing.assert_array_equal(np.rint(weak * 255), images)
    assert (np.rint(strong * 255) != images).any(axis=(1, 2, 3)).all()
    both = show(config("", views="random", crop="none", flip=False, **STRONG, **PLAIN), examples)
    assert (np.rint(both["image"] * 255) != images).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(both["view2"], strong)


def test_pairs_show_both_pictures(tmp_path):
    for number in range(8):
        for half in (1, 2):
            pixels = np.full((20, 20, 3), 20 * number + 10 * half, np.uint8)
            (tmp_path / f"{number}_{half}.png").write_bytes(encode(pixels, "PNG"))
    run = config(f"pairs:{tmp_path}", views="pairs", **PLAIN)
    (batch,) = take(data.train_batches(run), 1)
    levels = [np.rint(batch[name][:, 0, 0, 0] * 255).astype(int) for name in ("image", "view2")]
    assert sorted(levels[0]) == [20 * number + 10 for number in range(8)]
    np.testing.assert_array_equal(levels[1], levels[0] + 10)


def test_a_pair_with_an_unreadable_half_is_replaced_as_a_whole(tmp_path):
    for number in range(12):
        for half in (1, 2):
            pixels = np.full((20, 20, 3), 20 * number + 10 * half, np.uint8)
            (tmp_path / f"{number}_{half}.png").write_bytes(encode(pixels, "PNG"))
    (tmp_path / "3_2.png").write_bytes(b"")
    (tmp_path / "5_1.png").write_bytes(b"")
    run = config(f"pairs:{tmp_path}", views="pairs", max_bad_fraction=1.0, **PLAIN)
    for batch in take(data.train_batches(run), 3):
        first, second = (np.rint(batch[name][:, 0, 0, 0] * 255).astype(int) for name in ("image", "view2"))
        np.testing.assert_array_equal(second, first + 10)
        assert not {70, 110} & set(first)


def test_evaluation_shows_one_view_unless_asked_for_those_of_training(source):
    run = config(source[0], channels=source[1], views="global_to_local")
    (plain,) = data.eval_batches(run, "train", batch_size=4, indices=np.arange(3))
    assert "view2" not in plain
    one, other = (
        next(data.eval_batches(run, "train", batch_size=4, indices=np.arange(3), training_views=True)) for _ in range(2)
    )
    np.testing.assert_array_equal(one["view2"], other["view2"])
    assert one["view2"][:3].any(axis=(1, 2, 3)).all() and not one["view2"][3].any() and not one["image"][3].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(views="two"), "data.views is 'two'; choose one of 'one', 'same', 'random'"),
        (dict(views="weak_strong"), "nothing makes the second view a strong one; set one of data.color_jitter, "),
        (dict(local_scale=(0.6, 0.3)), r"data.local_scale is \(0.6, 0.3\); it must be two rising shares"),
        (dict(color_jitter=(0.4, 0.4, 0.4)), r"data.color_jitter is .*; give brightness, contrast and saturation"),
        (dict(color_jitter=(0.4, 0.4, 0.4, 0.7)), r"hue in \[0, 0.5\]"),
        (dict(color_jitter_probability=1.5), r"data.color_jitter_probability is 1.5; it must lie in \[0, 1\]"),
        (dict(solarize=-0.1), r"data.solarize is -0.1; it must lie in \[0, 1\]"),
        (dict(crop_resize=8), "data.crop_resize is 8, smaller than image_size 16"),
        (dict(crop_padding=16), r"data.crop_padding is 16; it must lie in \[0, 16\)"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        data.train_batches(config("synthetic:40", **changes))


def test_data_that_does_not_fit(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.random.default_rng(0).random((12, 20, 20, 3), np.float32))
    run = config(f"npz:{tmp_path}/a.npz", views="pairs")
    for call in (data.train_batches, data.data_info):
        with pytest.raises(ConfigError, match="data.views is 'pairs', but .* holds single images; set data.source to"):
            call(run)
    for changes in (dict(color_jitter=(0.4, 0.4, 0.4, 0.0)), dict(three_augment=True), dict(blur=0.5)):
        with pytest.raises(ConfigError, match=f"data.{next(iter(changes))} needs 8-bit images .* of float32; set"):
            data.train_batches(config(f"npz:{tmp_path}/a.npz", **changes))


def test_an_objective_gets_the_views_it_reads():
    run = config("synthetic:40", method="cropmae", task="")
    with pytest.raises(ConfigError, match="cropmae reads two views of each example, but data.views is 'one'; choose"):
        data.check_views(run, {"image": None, "view2": None})
    data.check_views(run, {"image": None})
    run.data.views = "random"
    data.check_views(run, {"image": None, "view2": None})
    with pytest.raises(ConfigError, match="cropmae reads one view of each example, but data.views is 'random'; set"):
        data.check_views(run, {"image": None, "label": None})
