import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mim_jax import data
from mim_jax.errors import ConfigError, DataError
from tests.evaluation.conftest import make_subject

IMAGES, SIZE, PATCH = 40, 16, 4
THRESHOLDS = (0.2, 0.5, 0.8)
OVERRIDES = {
    "evaluation__tasks": ("zero_shot",),
    "evaluation__batch_size": 16,
    "evaluation__zero_shot__thresholds": THRESHOLDS,
}


def picture(rng):
    """A bright rectangle on black."""
    image = np.zeros((SIZE, SIZE), np.uint8)
    top, left = rng.integers(0, 8, 2)
    height, width = rng.integers(5, 9, 2)
    image[top : top + height, left : left + width] = rng.integers(100, 256, (height, width))
    return image


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    rng = np.random.default_rng(0)
    images = np.stack([picture(rng) for _ in range(IMAGES)])[..., None]
    images[5] = 0  # nothing to see
    file = tmp_path_factory.mktemp("data") / "rectangles.npz"
    np.savez(file, train_image=images, test_image=images)
    return make_subject("mae", **{"data.source": f"npz:{file}", "data.train_split": "train", "data.eval_split": "test"})


def result_of(subject, tmp_path, devices=8, **overrides):
    evaluator = subject.evaluator(devices, **OVERRIDES, **overrides)
    return evaluator.evaluate(subject.variables, ("zero_shot",), step=0, out_dir=tmp_path)["zero_shot"]


@pytest.fixture(scope="module")
def result(subject, tmp_path_factory):
    return result_of(subject, tmp_path_factory.mktemp("out"))


def reference(subject):
    """All metrics but those of the prompts' choice, which is taken to be every patch of the object once."""
    (batch,) = data.eval_batches(subject.config, None, batch_size=IMAGES)
    pixels = data.denormalize(batch["image"], *data.normalization(subject.config))[..., 0]
    tokens = torch.from_numpy(np.array(subject.objective.encode(subject.variables, batch["image"])["tokens"]))
    unit = F.normalize(tokens, dim=2)
    ious, intra, inter, share = [], [], [], []
    for image, features in zip(pixels, unit, strict=True):
        inside = image > 0.1
        belongs = inside.reshape(4, 4, 4, 4).mean(axis=(1, 3)).ravel() >= 0.5
        if not belongs.any():
            continue
        cosines = (features @ features.T).numpy()
        intra.append(cosines[np.ix_(belongs, belongs)][np.triu_indices(belongs.sum(), 1)])
        inter.append(cosines[np.ix_(belongs, ~belongs)].ravel())
        share.append(inside.mean())
        maps = torch.from_numpy(cosines[belongs]).reshape(1, -1, 4, 4)
        maps = F.interpolate(maps, (SIZE, SIZE), mode="bilinear")[0].numpy()
        rows = [[((m > t) & inside).sum() / max(((m > t) | inside).sum(), 1) for t in THRESHOLDS] for m in maps]
        ious.append(np.mean(rows, axis=0))
    intra, inter = np.concatenate(intra), np.concatenate(inter)
    shapes = [np.histogram(x, bins=100, range=(-1, 1))[0] / x.size for x in (intra, inter)]
    iou = 100 * np.mean(ious, axis=0)
    return {
        "iou": iou.mean(),
        "iou_best": iou.max(),
        "threshold_best": THRESHOLDS[int(iou.argmax())],
        "iou_everything": 100 * np.mean(share),
        "intra": intra.mean(),
        "inter": inter.mean(),
        "overlap": np.minimum(*shapes).sum(),
    }


def test_numbers_are_those_of_a_reference(subject, tmp_path):
    """With so many prompts that their mean is that over the object's patches."""
    found = result_of(subject, tmp_path, evaluation__zero_shot__prompts=2000)
    expected = reference(subject)
    assert found.metrics.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = 1.0 if name in ("iou", "iou_best") else 1e-3  # percent, of a mean over random prompts
        assert found.metrics[name] == pytest.approx(value, abs=tolerance), name


def test_every_image_is_used_but_those_without_an_object(result):
    assert result.complete and result.details == {"examples": IMAGES, "examples_with_object": IMAGES - 1}
    assert 0.0 < result.metrics["overlap"] <= 1.0


def test_devices_and_batches_do_not_matter(subject, result, tmp_path):
    other = result_of(subject, tmp_path, devices=1)
    assert other.metrics == pytest.approx(result.metrics, rel=1e-4)


def test_features_that_know_the_object_find_it(subject, tmp_path, monkeypatch):
    def encode(variables, images):
        share = (images > images.min()).reshape(-1, 4, PATCH, 4, PATCH).mean(axis=(2, 4), dtype=jnp.float32)
        belongs = (share.reshape(-1, 16) >= 0.5).astype(jnp.int32)
        return {"tokens": jax.nn.one_hot(belongs, 2, dtype=jnp.float32), "pooled": jnp.zeros((len(images), 2))}

    monkeypatch.setattr(subject.objective, "encode", encode)
    metrics = result_of(subject, tmp_path).metrics
    assert (metrics["intra"], metrics["inter"], metrics["overlap"]) == pytest.approx((1.0, 0.0, 0.0))
    assert metrics["iou_best"] > 2 * metrics["iou_everything"] > 0


def test_a_light_background_is_said_so(subject, tmp_path):
    with pytest.raises(DataError, match="found no object on a background in any image"):
        result_of(subject, tmp_path, evaluation__zero_shot__background=1.0, evaluation__zero_shot__max_examples=None)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("prompts", 0, "prompts is 0"),
        ("thresholds", (0.5, 1.0), r"thresholds is \(0.5, 1.0\)"),
        ("background", 2.0, "background is 2.0"),
        ("max_examples", 0, "max_examples is 0"),
    ],
)
def test_settings_that_make_no_sense(subject, key, value, match):
    with pytest.raises(ConfigError, match=match):
        subject.evaluator(**{"evaluation__tasks": ("zero_shot",), f"evaluation__zero_shot__{key}": value})


def test_an_encoder_without_a_grid_is_refused(subject, monkeypatch):
    tokens = {"tokens": jnp.zeros((1, 15, 4)), "pooled": jnp.zeros((1, 4))}
    monkeypatch.setattr(subject.objective, "encode", lambda variables, images: tokens)
    with pytest.raises(ConfigError, match="gives 15 tokens of 16x16 pixels"):
        subject.evaluator(evaluation__tasks=("zero_shot",))
