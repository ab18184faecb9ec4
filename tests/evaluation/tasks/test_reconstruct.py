import jax
import numpy as np
import pytest
from PIL import Image

from mim_jax import data
from mim_jax.errors import ConfigError
from mim_jax.evaluation.reconstruct import to_rgb, upscale_factor
from tests.evaluation.conftest import make_subject
from tests.evaluation.test_reconstruct import find


def cells(panel, images, factor):
    """The original images' places and what stands one and two rows below them, back at their own size."""
    height, width = images.shape[1:3]
    array = np.asarray(panel)
    found = []
    for image in images:
        x, y = find(panel, image, factor)
        column = array[y:, x : x + width * factor]
        rows = [column[row * (height * factor + 6) :][: height * factor] for row in range(3)]
        found.append([cell[::factor, ::factor] for cell in rows])
    return np.array(found)


@pytest.fixture(scope="module", params=["mae", "simmim"])
def drawn(request, tmp_path_factory):
    """Two panels of one subject, with other weights at the second step."""
    subject, folder = make_subject(request.param), tmp_path_factory.mktemp(request.param)
    evaluator = subject.evaluator(evaluation__reconstruct__num_images=4)
    others = jax.tree.map(lambda leaf: leaf + 0.1, subject.variables)
    results = [
        evaluator.evaluate(variables, ("reconstruct",), step=step, out_dir=folder)["reconstruct"]
        for step, variables in ((0, subject.variables), (7, others))
    ]
    return subject, folder, results


def test_panels_show_the_same_images_and_masks_at_every_step(drawn):
    subject, folder, results = drawn
    assert [path.name for path in sorted(folder.iterdir())] == [
        "reconstructions_00000000.png",
        "reconstructions_00000007.png",
    ]
    chosen = np.array(results[0].details["images"])
    (batch,) = data.eval_batches(subject.config, None, indices=chosen, batch_size=4)
    images = data.denormalize(batch["image"], *data.normalization(subject.config))
    panels = [Image.open(result.files[0]) for result in results]
    first, second = (cells(panel, to_rgb(images), upscale_factor(16, 16)) for panel in panels)
    original, masked, reconstruction = first.transpose(1, 0, 2, 3, 4)
    hidden = (masked == 128).all(axis=-1)
    ratio = subject.config.mask_ratio
    assert hidden.mean() == pytest.approx(ratio, abs=0.05)
    np.testing.assert_array_equal(masked[~hidden], original[~hidden])
    np.testing.assert_array_equal(reconstruction[~hidden], original[~hidden])
    assert (reconstruction[hidden] != original[hidden]).any()
    np.testing.assert_array_equal(second[:, 1], masked)
    assert (second[:, 2] != reconstruction).any()


def test_black_visible_pixels_are_not_taken_for_hidden_ones(tmp_path):
    np.savez(tmp_path / "black.npz", image=np.zeros((6, 16, 16, 1), np.uint8))
    plain = {"data.source": f"npz:{tmp_path}/black.npz", "data.mean": (0.0,), "data.std": (1.0,)}
    subject = make_subject("mae", **plain, **{"data.eval_split": "auto"})
    evaluator = subject.evaluator(evaluation__reconstruct__num_images=1)
    result = evaluator.evaluate(subject.variables, ("reconstruct",), step=0, out_dir=tmp_path)["reconstruct"]
    panel = Image.open(result.files[0])
    _, masked, _ = cells(panel, np.zeros((1, 16, 16, 3), np.uint8), upscale_factor(16, 16))[0]
    assert (masked == 128).mean() == pytest.approx(subject.config.mask_ratio, abs=0.05)
    assert ((masked == 128) | (masked == 0)).all()


def test_a_method_without_pictures_is_refused_before_training():
    with pytest.raises(ConfigError, match="predicts nothing one can look at"):
        make_subject("ijepa", image_size=28).evaluator(evaluation__tasks=("reconstruct",))


def test_more_images_than_there_are_is_refused(mae):
    with pytest.raises(ConfigError, match="num_images is 101; the split has 100 images"):
        mae.evaluator(evaluation__tasks=("reconstruct",), evaluation__reconstruct__num_images=101)


def test_a_method_that_reads_two_views_gets_those_of_training(tmp_path):
    subject = make_subject("cropmae", mask_ratio=0.85)
    evaluator = subject.evaluator(evaluation__reconstruct__num_images=4)
    result = evaluator.evaluate(subject.variables, ("reconstruct",), step=0, out_dir=tmp_path)["reconstruct"]
    chosen = np.array(result.details["images"])
    (batch,) = data.eval_batches(subject.config, None, indices=chosen, batch_size=4, training_views=True)
    images = data.denormalize(batch["image"], *data.normalization(subject.config))
    original = cells(Image.open(result.files[0]), to_rgb(images), upscale_factor(16, 16))[:, 0]
    np.testing.assert_array_equal(original, to_rgb(images))
