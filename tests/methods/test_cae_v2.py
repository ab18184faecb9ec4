"""CAE v2 against a forward pass of student and CLIP written in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.interop import import_with_report
from mim_jax.normalization import CLIP, IMAGENET
from tests.interop import test_official_layouts as official
from tests.methods import cae_peer
from tests.methods.test_cae import MASK, REGRESSORS, pixels_of
from tests.tiny import ROOT, clock

LAYOUT, OUTPUTS = "Atten4Vis/CAE", 6
KEY = jax.random.key(0)
TEACHER = dict(width=24, depth=2, heads=3, patch_size=4)


@functools.cache
def make(kind="same", **changes):
    width, heads = REGRESSORS[kind]
    return mim_jax.create(
        dict(
            method="cae_v2",
            image_size=16,
            model=dict(width=16, depth=2, heads=4, patch_size=4),
            regressor=dict(width=width, depth=2, heads=heads),
            teacher=dict(TEACHER, weights="random"),
            **{"target_width": OUTPUTS, **changes},
        )
    )


@functools.cache
def clip_state():
    return cae_peer.clip_state(24, 2, OUTPUTS)


@functools.cache
def state_of(kind):
    return cae_peer.make_state(*REGRESSORS[kind], OUTPUTS, decoder_depth=0)


@functools.cache
def variables_of(kind="same"):
    return mim_jax.import_weights(make(kind), {"model": state_of(kind), "teacher": clip_state()}, LAYOUT, strict=True)


@functools.cache
def run(kind="same"):
    """`(variables, images) -> loss, aux` without drop path, compiled."""
    masks = mim_jax.TokenMask.from_bool(MASK)
    return jax.jit(lambda v, images: make(kind).loss(v, {"image": images}, masks, None, clock()))


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def clip_tokens(images):
    (mean, std), (own_mean, own_std) = ([torch.tensor(v)[:, None, None] for v in pair] for pair in (IMAGENET, CLIP))
    with torch.no_grad():
        return cae_peer.clip(clip_state(), (images * std + mean - own_mean) / own_std, 2, 3)


@pytest.mark.parametrize("kind", REGRESSORS)
def test_predictions_targets_and_loss_are_pytorchs(kind, images, tmp_path):
    theirs = cae_peer.cae_v2(state_of(kind), images, torch.tensor(MASK), clip_tokens(images), REGRESSORS[kind][1])
    loss, aux = run(kind)(variables_of(kind), official.as_batch(images)["image"])
    for ours, expected in zip((aux["prediction"], aux["target"], loss), theirs, strict=True):
        official.assert_equal(ours, expected)
    assert float(aux["terms"]["cosine"]) == float(loss)
    kept = {name: tensor for name, tensor in state_of(kind).items() if not name.startswith("regresser.norm")}
    visual = {f"teacher.{name}": tensor for name, tensor in clip_state().items() if name.startswith("visual.")}
    official.assert_round_trip(make(kind), variables_of(kind), LAYOUT, kept | visual, tmp_path)


@pytest.mark.parametrize("names", ["openai/clip", "transformers/clip"])
def test_the_teachers_own_files_bring_the_projection(names):
    state = clip_state()
    if names == "transformers/clip":
        # The other tensors are compared in tests/models/test_teachers.py.
        variables, report = import_with_report(
            make().teacher.objective, {"visual_projection.weight": state["visual.proj"].T}, names, parts=("projection",)
        )
    else:
        variables, report = import_with_report(make().teacher.objective, state, names, strict=True)
        assert not report.random
    np.testing.assert_array_equal(variables["params"]["projection"]["kernel"], state["visual.proj"])


def test_without_a_projection_targets_are_the_tokens_after_the_norm(images):
    objective, batch = make(target_width=None), official.as_batch(images)
    teacher = {"encoder": variables_of()["teacher"]["teacher"]["encoder"]}
    tokens = objective.teacher(teacher, jnp.asarray(batch["image"]))
    projected = make().teacher(variables_of()["teacher"]["teacher"], jnp.asarray(batch["image"]))
    np.testing.assert_allclose(tokens @ clip_state()["visual.proj"].numpy(), projected, rtol=1e-4, atol=1e-4)
    params = jax.eval_shape(objective.init, KEY, batch)
    assert params["params"]["decoder"]["prediction"]["kernel"].shape == (16, 24)
    assert set(params["teacher"]["teacher"]) == {"encoder"}


def test_predictions_of_visible_tokens_do_not_see_hidden_pixels(images):
    seen = official.as_batch(images)["image"]
    _, aux = run()(variables_of(), seen)
    _, other = run()(variables_of(), seen + pixels_of(MASK))
    np.testing.assert_array_equal(other["prediction"], aux["prediction"])
    assert not np.allclose(other["target"], aux["target"])  # the teacher's are of the intact image


def test_parameter_counts():
    """Encoder and regressor of CAE but its last norm, a norm and a dense layer; CLIP's image encoder in full."""
    objective = mim_jax.create(mim_jax.load_config(str(ROOT / "configs/cae_v2_vit_b16_in1k.py")))
    variables = jax.eval_shape(objective.init, KEY, objective.batch_spec())
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in variables["params"].items()}
    assert count == {
        "encoder": 85_656_576,
        "regressor": 28_368_384 + 768 - 2 * 768,
        "decoder": 2 * 768 + 768 * 512 + 512,
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["teacher"])) == 86_192_640


@pytest.mark.parametrize(("ratio", "hidden"), [(0.5, 98), (0.25, 49), (0.153, 30)])
def test_smaller_students_hide_as_much_as_the_sheet_says(ratio, hidden):
    config = mim_jax.load_config(str(ROOT / "configs/cae_v2_vit_b16_in1k.py"), {"mask_ratio": ratio})
    objective = mim_jax.create(config)
    assert objective.encoder.num_patches - objective.num_keep == hidden


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"teacher.image_size": 56}, "The teacher has 14x14 patches"),
        ({"model.class_token": False, "model.pool": "mean"}, "class_token=True, the student 7x7 and False"),
        ({"target_width": 0}, "target_width is 0"),
    ],
)
def test_teachers_without_a_target_for_each_token_are_refused(changes, match):
    config = mim_jax.load_config(str(ROOT / "configs/cae_v2_fashion_mnist.py"), changes)
    with pytest.raises(ConfigError, match=match):
        mim_jax.create(config)
