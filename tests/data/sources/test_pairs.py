import pytest

from mim_jax import data
from mim_jax.data.sources import open_examples
from mim_jax.errors import DataError
from tests.data.make import config, encode, photo


@pytest.fixture
def picture():
    return encode(photo(20, 20), "PNG")


def write(root, picture, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)


def test_halves_find_each_other_in_nested_folders(tmp_path, picture):
    write(tmp_path, picture, "b/x_1.png", "b/x_2.png", "a/x_2.png", "a/x_1.png", "a/x_depth.png", "c_1.png", "c_2.png")
    examples = open_examples(config(f"pairs:{tmp_path}"), "train")
    found = [
        [half.describe(i).removeprefix(f"{tmp_path}/") for i in range(3)] for half in (examples, examples.partners)
    ]
    assert found == [["a/x_1.png", "b/x_1.png", "c_1.png"], ["a/x_2.png", "b/x_2.png", "c_2.png"]]
    assert not examples.labelled and len(examples) == len(examples.partners) == 3


def test_splits_are_folders(tmp_path, picture):
    write(tmp_path, picture, *(f"{split}/{n}_{half}.png" for split in ("train", "val") for n in "ab" for half in "12"))
    info = data.data_info(config(f"pairs:{tmp_path}", views="pairs"))
    assert (info.num_train_examples, info.num_eval_examples, info.num_classes) == (2, 2, None)


def test_a_pair_needs_both_halves(tmp_path, picture):
    write(tmp_path, picture, "a_1.png", "a_2.png", "b_2.png")
    with pytest.raises(DataError, match="b_2.png has no other half, b_1; add or remove one of them"):
        open_examples(config(f"pairs:{tmp_path}"), "train")


def test_a_folder_of_single_images_is_refused(tmp_path, picture):
    write(tmp_path, picture, "a.png", "b.png")
    with pytest.raises(DataError, match="holds no pair; looked for <name>_1 and <name>_2 ending in"):
        open_examples(config(f"pairs:{tmp_path}"), "train")
