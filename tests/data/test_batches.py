"""The streams: pure functions of (seed, step), for any number of processes, over every kind of source."""

import itertools
import logging
import time

import numpy as np
import pytest

from mim_jax import data
from mim_jax.data.order import TrainOrder
from mim_jax.errors import ConfigError, DataError
from tests.data.make import all_levels, config, encode, levels, photo, photo_folder, write_folder


def take(batches, count: int) -> list[dict[str, np.ndarray]]:
    found = list(itertools.islice(batches, count))
    batches.close()
    return found


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(params=["synthetic", "npz", "large arrays", "folder"])
def run(request, tmp_path):
    """A config with every random transform on, over each kind of source."""
    changes = dict(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
    if request.param == "synthetic":
        return config("synthetic:40", **changes)
    if request.param == "npz":
        images = np.random.default_rng(0).integers(0, 256, (30, 20, 24, 3), np.uint8)
        np.savez(tmp_path / "a.npz", image=images, label=np.arange(30) % 5)
        return config(f"npz:{tmp_path}/a.npz", **changes)
    if request.param == "large arrays":
        np.savez(tmp_path / "a.npz", image=np.stack([photo()] * 9), label=np.arange(9))
        return config(f"npz:{tmp_path}/a.npz", **changes)
    return config(photo_folder(tmp_path), **changes)


def test_batches_have_the_promised_form(run):
    (batch,) = take(data.train_batches(run), 1)
    assert batch.keys() == {"image", "label"}
    assert batch["image"].shape == (8, 16, 16, 3) and batch["image"].dtype == np.float32
    assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32
    assert np.isfinite(batch["image"]).all() and batch["image"].std() > 0.1


def test_the_stream_is_a_function_of_seed_and_step(run):
    first = take(data.train_batches(run), 6)
    run.data.num_workers, run.data.prefetch = 1, 1
    for step, batch in enumerate(take(data.train_batches(run), 6)):
        assert_equal(batch, first[step])
    for step, batch in enumerate(take(data.train_batches(run, start_step=4), 2)):
        assert_equal(batch, first[4 + step])
    run.seed = 1
    (other,) = take(data.train_batches(run), 1)
    assert (other["image"] != first[0]["image"]).any()


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_see_the_same_batch(run, processes):
    whole = take(data.train_batches(run, start_step=2), 2)
    parts = [
        take(data.train_batches(run, start_step=2, process_index=index, process_count=processes), 2)
        for index in range(processes)
    ]
    for step in range(2):
        joined = {name: np.concatenate([part[step][name] for part in parts]) for name in whole[step]}
        assert_equal(joined, whole[step])


def test_a_late_step_starts_at_once(run):
    take(data.train_batches(run), 1)
    start = time.perf_counter()
    take(data.train_batches(run, start_step=10**9), 1)
    assert time.perf_counter() - start < 2.0


def test_every_epoch_shows_every_image_once(tmp_path):
    write_folder(tmp_path, 24)
    run = config(f"folder:{tmp_path}", crop="resize", mean=(0.0,) * 3, std=(1.0,) * 3)
    batches = take(data.train_batches(run), 6)
    epochs = [all_levels(batches[first : first + 3]) for first in (0, 3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(24))] * 2
    assert epochs[0] != epochs[1]
    for batch in batches:
        assert [level % 2 for level in levels(batch)] == batch["label"].tolist()


def test_repeated_images_are_neighbours_augmented_by_themselves(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.stack([photo()] * 9), label=np.arange(9))
    run = config(f"npz:{tmp_path}/a.npz", repeats=4, trivial_augment=True)
    first, second = take(data.train_batches(run), 2)
    labels = first["label"].tolist()
    assert labels[0::4] == labels[1::4] == labels[2::4] == labels[3::4] and labels[0] != labels[4]
    assert len({image.tobytes() for image in first["image"]}) == 8
    assert_equal(take(data.train_batches(run, start_step=1), 1)[0], second)


def test_epochs_that_end_inside_a_batch(tmp_path):
    write_folder(tmp_path, 10)
    run = config(f"folder:{tmp_path}", crop="resize", mean=(0.0,) * 3, std=(1.0,) * 3)
    seen = all_levels(take(data.train_batches(run), 5))
    assert all(sorted(seen[first : first + 10]) == list(range(10)) for first in range(0, 40, 10))


def test_images_are_flipped_and_normalised(tmp_path):
    ramp = np.tile(np.arange(16, dtype=np.uint8) * 10, (1, 16, 1))[..., None]
    np.savez(tmp_path / "a.npz", image=np.repeat(ramp, 64, axis=0))
    run = config(f"npz:{tmp_path}/a.npz", channels=1, crop="none", batch_size=64, mean=(0.5,), std=(0.25,))
    (batch,) = take(data.train_batches(run), 1)
    rows = np.rint((batch["image"][:, 0, :, 0] * 0.25 + 0.5) * 255).astype(int).tolist()
    straight = ramp[0, 0, :, 0].tolist()
    assert all(row in (straight, straight[::-1]) for row in rows)
    assert 16 <= sum(row == straight for row in rows) <= 48
    run.data.flip = False
    (batch,) = take(data.train_batches(run), 1)
    expected = (ramp[0].astype(np.float64) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(batch["image"], np.repeat(expected[None], 64, axis=0), atol=1e-6)


def test_a_folder_without_labels(tmp_path):
    write_folder(tmp_path, 8, classes=0)
    run = config(f"folder:{tmp_path}")
    (batch,) = take(data.train_batches(run), 1)
    assert batch.keys() == {"image"}
    (batch,) = data.eval_batches(run, "train", batch_size=8)
    assert batch.keys() == {"image", "valid", "index"}


def test_grey_arrays_become_colour_and_any_shape(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.random.default_rng(0).integers(0, 256, (8, 30, 20), np.uint8))
    run = config(f"npz:{tmp_path}/a.npz", image_size=(12, 20))
    (batch,) = take(data.train_batches(run), 1)
    assert batch["image"].shape == (8, 12, 20, 3)
    pixels = data.denormalize(batch["image"], *data.normalization(run))
    np.testing.assert_allclose(pixels[..., 0], pixels[..., 2], atol=1e-6)


def test_many_channels_of_floats(tmp_path):
    images = np.random.default_rng(0).random((8, 16, 16, 5)).astype(np.float32)
    np.savez(tmp_path / "a.npz", image=images)
    run = config(f"npz:{tmp_path}/a.npz", channels=5, mean=(0.0,) * 5, std=(1.0,) * 5, crop="none", flip=False)
    (batch,) = take(data.train_batches(run), 1)
    order = TrainOrder(0, 8, 8)
    np.testing.assert_allclose(batch["image"], images[order.indices(order.positions(0, 0, 8))], rtol=1e-6)


class TestUnreadableImages:
    """Bad files are replaced without moving the stream."""

    @pytest.fixture
    def run(self, tmp_path):
        write_folder(tmp_path, 24)
        return config(f"folder:{tmp_path}", crop="resize", mean=(0.0,) * 3, std=(1.0,) * 3, max_bad_fraction=0.5)

    @staticmethod
    def damage(tmp_path, number: int, content: bytes = b"nonsense") -> None:
        (tmp_path / f"class{number % 2}" / f"{number:04d}.png").write_bytes(content)

    def test_they_are_replaced_counted_and_named(self, run, tmp_path, caplog):
        good = all_levels(take(data.train_batches(run), 6))
        self.damage(tmp_path, 5)
        self.damage(tmp_path, 6, b"")
        with caplog.at_level(logging.WARNING):
            batches = take(data.train_batches(run), 6)
        bad = all_levels(batches)
        moved = [position for position in range(48) if good[position] != bad[position]]
        assert sorted(good[position] for position in moved) == [5, 5, 6, 6]
        assert not {5, 6} & set(bad)
        labels = np.concatenate([batch["label"] for batch in batches]).tolist()
        assert labels == [level % 2 for level in bad]
        messages = [record.getMessage() for record in caplog.records]
        assert sorted("0005.png" in message for message in messages) == [False, True]
        assert any("0006.png: the file is empty" in message for message in messages)

    def test_replacements_do_not_depend_on_processes_or_restarts(self, run, tmp_path):
        for number in (3, 4, 11):
            self.damage(tmp_path, number)
        whole = take(data.train_batches(run), 3)
        halves = [take(data.train_batches(run, process_index=i, process_count=2), 3) for i in (0, 1)]
        for step in range(3):
            joined = np.concatenate([half[step]["image"] for half in halves])
            np.testing.assert_array_equal(joined, whole[step]["image"])
        assert_equal(take(data.train_batches(run, start_step=2), 1)[0], whole[2])

    def test_too_many_are_an_error(self, run, tmp_path):
        for number in range(0, 24, 4):
            self.damage(tmp_path, number)
        run.data.max_bad_fraction = 0.1
        with pytest.raises(DataError, match=r"\d of 2\d images could not be read .* 0.1;.*0000.png|00\d\d.png"):
            take(data.train_batches(run), 6)

    def test_nothing_but_bad_ones_is_an_error(self, run, tmp_path):
        for number in range(24):
            self.damage(tmp_path, number)
        run.data.max_bad_fraction = 1.0
        with pytest.raises(DataError, match="could not be read"):
            take(data.train_batches(run), 1)

    def test_evaluation_marks_them(self, run, tmp_path):
        self.damage(tmp_path, 5)
        batches = list(data.eval_batches(run, "train", batch_size=10))
        valid = np.concatenate([batch["valid"] for batch in batches])
        index = np.concatenate([batch["index"] for batch in batches])
        assert valid.sum() == 23 and (~valid).sum() == 7
        names = sorted(path.name for path in tmp_path.glob("*/*"))
        assert len(names) == 24 and index[~valid].max() == 14  # class1/0005 comes after the 12 of class0, as third
        image = np.concatenate([batch["image"] for batch in batches])
        assert not image[~valid].any()
        run.data.max_bad_fraction = 0.01
        with pytest.raises(DataError, match=r"1 of 24 images could not be read"):
            list(data.eval_batches(run, "train", batch_size=10))


class TestEvaluation:
    """One exact pass."""

    @pytest.mark.parametrize("processes", [1, 3])
    @pytest.mark.parametrize("count", [1, 7, 12, 13])
    def test_every_example_once(self, tmp_path, count, processes):
        write_folder(tmp_path, count, classes=1)
        run = config(f"folder:{tmp_path}", mean=(0.0,) * 3, std=(1.0,) * 3)
        parts = [
            list(data.eval_batches(run, "train", batch_size=6, process_index=index, process_count=processes))
            for index in range(processes)
        ]
        assert {len(part) for part in parts} == {-(-count // 6)}
        batches = [batch for step in zip(*parts, strict=True) for batch in step]
        assert all(batch["image"].shape[0] == 6 // processes for batch in batches)
        valid = np.concatenate([batch["valid"] for batch in batches])
        index = np.concatenate([batch["index"] for batch in batches])
        assert index.dtype == np.int64
        assert index[valid].tolist() == list(range(count)) and (index[~valid] == -1).all()
        shown = all_levels(batches)
        assert [level for level, real in zip(shown, valid, strict=True) if real] == list(range(count))
        assert not np.concatenate([batch["image"] for batch in batches])[~valid].any()

    def test_chosen_examples(self, tmp_path):
        write_folder(tmp_path, 20, classes=1)
        run = config(f"folder:{tmp_path}", mean=(0.0,) * 3, std=(1.0,) * 3)
        chosen = np.array([3, 17, 5])
        (batch,) = data.eval_batches(run, "train", batch_size=4, indices=chosen)
        assert batch["index"].tolist() == [3, 17, 5, -1] and levels(batch)[:3] == [3, 17, 5]
        with pytest.raises(DataError, match="indices run from 3 to 20, but .* has 20"):
            data.eval_batches(run, "train", batch_size=4, indices=np.array([3, 20]))

    def test_it_is_not_random(self, run):
        split = "train"
        one, other = (list(data.eval_batches(run, split, batch_size=8)) for _ in range(2))
        for first, second in zip(one, other, strict=True):
            assert_equal(first, second)
        run.seed = 5
        assert_equal(next(data.eval_batches(run, split, batch_size=8)), one[0])

    def test_images_of_the_right_size_are_left_alone(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
        np.savez(tmp_path / "a.npz", image=images)
        run = config(f"npz:{tmp_path}/a.npz", mean=(0.0,) * 3, std=(1.0,) * 3)
        (batch,) = data.eval_batches(run, "train", batch_size=4)
        np.testing.assert_array_equal(np.rint(batch["image"] * 255), images)
        run.data.eval_resize = 18
        (batch,) = data.eval_batches(run, "train", batch_size=4)
        assert (np.rint(batch["image"] * 255) != images).any()

    def test_a_photo_is_resized_and_cropped_as_in_the_papers(self, tmp_path):
        from PIL import Image

        (tmp_path / "a.png").write_bytes(encode(photo(), "PNG"))
        run = config(f"folder:{tmp_path}", image_size=56, mean=(0.0,) * 3, std=(1.0,) * 3)
        (batch,) = data.eval_batches(run, "train", batch_size=1)
        resized = Image.fromarray(photo()).resize((int(64 * 160 / 120), 64), Image.Resampling.BICUBIC)
        left = round((resized.width - 56) / 2)
        expected = np.asarray(resized.crop((left, 4, left + 56, 60)))
        assert np.abs(np.rint(batch["image"][0] * 255) - expected).max() <= 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(batch_size=41), DataError, r"has 40 images, fewer than batch_size 41; lower batch_size"),
        (dict(train_split="trian"), DataError, "no split 'trian'; .* train, test"),
        (dict(crop="centre"), ConfigError, "data.crop is 'centre'; choose one of 'random_resized'"),
    ],
)
def test_mistakes_are_found_before_the_first_batch(changes, error, message):
    run = config("synthetic:40", **changes)
    with pytest.raises(error, match=message):
        data.train_batches(run)


def test_more_mistakes(tmp_path):
    with pytest.raises(ConfigError, match="batch_size 8 does not divide among 3 processes"):
        data.train_batches(config("synthetic:40"), process_count=3)
    with pytest.raises(ConfigError, match="start_step is -1"):
        data.train_batches(config("synthetic:40"), start_step=-1)
    with pytest.raises(DataError, match="has no split to evaluate on; set data.eval_split"):
        data.eval_batches(config("synthetic:40", eval_split=None), batch_size=8)
    write_folder(tmp_path, 8)
    with pytest.raises(DataError, match=r"'none' but an image of 20x20 pixels came up and image_size is 16x16"):
        next(data.train_batches(config(f"folder:{tmp_path}", crop="none")))
