"""What keeps methods with an EMA teacher from collapsing, on scikit-learn's handwritten digits.

Without it, which is the student itself in the teacher's place and gradients through the targets, all images end up with
the same features. Each method is trained both ways, for seconds, by the same compiled program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import mim_jax
from mim_jax.evaluation.statistics import representation_statistics
from mim_jax.masking.multiblock import BlockMasks
from mim_jax.masking.token_mask import TokenMask

STEPS, BATCH, PATCHES, PROTOTYPES = 40, 32, 16, 32


def blocks(noise: jax.Array) -> BlockMasks:
    """Six patches of context and twice five that are predicted, from `noise [V, B, N]`."""
    order = jnp.argsort(noise[0], axis=1)
    return BlockMasks((order[:, :6],), (order[:, 6:11], order[:, 11:]))


def two_views(noise: jax.Array) -> tuple[TokenMask, ...]:
    """Of each view a quarter is hidden."""
    return tuple(TokenMask.from_noise(view, 12) for view in noise)


class Subject(NamedTuple):
    """A method, how it is masked, and the term that pulls student and teacher together."""

    make_masks: Callable[[jax.Array], Any]
    term: str
    settings: dict[str, Any]


PREDICTOR = dict(width=16, depth=1, heads=2)
SUBJECTS = {
    "ijepa": Subject(blocks, "prediction", dict(predictor=PREDICTOR)),
    "dmt_jepa": Subject(blocks, "prediction", dict(predictor=PREDICTOR, head=dict(depth=1, heads=2))),
    "mmc": Subject(
        two_views,
        "distil",
        dict(projector=dict(hidden=32, output=16), prototypes=dict(count=PROTOTYPES, hidden=32, bottleneck=16)),
    ),
}


def make_objective(method: str) -> mim_jax.Objective:
    model = dict(width=32, depth=1, heads=2, patch_size=2, init_scheme="xavier")
    shared = dict(method=method, image_size=8, channels=1, model=model, ema_momentum=0.99, compute=dict(scan=False))
    return mim_jax.create({**shared, **SUBJECTS[method].settings})


@functools.cache
def digits() -> np.ndarray:
    """Images `[1024, 8, 8, 1]` whose pixels have mean 0 and deviation 1."""
    images = load_digits().images[:1024].astype(np.float32)[..., None] / 16.0
    return (images - images.mean()) / images.std()


def view(rng: np.random.Generator, examples: np.ndarray) -> np.ndarray:
    """`examples [S, B]` of the digits, each moved by up to a pixel along both axes and brighter or darker."""
    padded = np.pad(digits(), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    top, left = rng.integers(0, 3, (2, *examples.shape, 1, 1))
    pixels = np.arange(8)
    gain = rng.uniform(0.7, 1.3, (*examples.shape, 1, 1, 1)).astype(np.float32)
    return gain * padded[examples[..., None, None], top + pixels[:, None], left + pixels]


class Training(NamedTuple):
    """Variables before and after a training."""

    start: Any
    end: Any


@functools.cache
def trainings(method: str) -> tuple[Training, Training]:
    """Of the method as it is, and broken: the student is its own teacher and no gradient is stopped.

    The broken one is trained by the one term alone that pulls student and teacher together.
    """
    subject, objective, optimizer = SUBJECTS[method], make_objective(method), optax.adam(3e-3)
    rng = np.random.default_rng(0)
    examples = rng.integers(0, len(digits()), (STEPS, BATCH))
    stream = {
        "number": np.arange(STEPS, dtype=np.int32),
        "batch": {name: view(rng, examples) for name in objective.batch_spec()},
        "noise": rng.random((STEPS, 2, BATCH, PATCHES), np.float32),
    }
    stop = jax.lax.stop_gradient

    def train(broken: jax.Array, stream: Any) -> Training:
        def choose(if_broken, otherwise):
            return jax.tree.map(lambda x, y: jnp.where(broken, x, y), if_broken, otherwise)

        def with_teacher(variables):
            twin = {name: variables["params"][name] for name in variables["teacher"]}
            return {**variables, "teacher": choose(twin, variables["teacher"])}

        def step(carry, inputs):
            variables, moments = carry
            now = mim_jax.Clock.at(inputs["number"], total_steps=STEPS, steps_per_epoch=16.0)
            masks = subject.make_masks(inputs["noise"])

            def loss(params):
                taught = with_teacher({**variables, "params": params})
                value, aux = objective.loss(taught, inputs["batch"], masks, None, now)
                return jnp.where(broken, aux["terms"][subject.term], value), aux

            gradients, aux = jax.grad(loss, has_aux=True)(variables["params"])
            with jax.numpy_dtype_promotion("standard"):
                updates, moments = optimizer.update(gradients, moments)
            new = {"params": optax.apply_updates(variables["params"], updates)}
            if "state" in variables:
                new["state"] = aux["state"]
            return (objective.update({**variables, **new}, now), moments), None

        start = objective.init(jax.random.key(0), objective.batch_spec())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.lax, "stop_gradient", lambda tree: choose(tree, stop(tree)))
            (end, _), _ = jax.lax.scan(step, (start, optimizer.init(start["params"])), stream)
        return Training(start, with_teacher(end))

    run = jax.jit(train)
    return run(jnp.bool_(False), stream), run(jnp.bool_(True), stream)


@pytest.mark.parametrize("method", SUBJECTS)
def test_features_collapse_where_student_and_teacher_are_one_and_only_there(method):
    encode = jax.jit(make_objective(method).encode)
    sound, broken = trainings(method)
    before, after, collapsed = (
        representation_statistics(np.asarray(encode(variables, digits()[:256])["pooled"]))
        for variables in (sound.start, sound.end, broken.end)
    )
    # The rank is of centred features, whatever their size: of a collapse their deviation and common direction tell.
    assert after["feature_std"] > 0.6 * before["feature_std"]
    assert after["effective_rank"] > 0.8 * before["effective_rank"]
    assert collapsed["feature_std"] ** 2 < 0.2 * after["feature_std"] ** 2
    assert 1.0 - collapsed["mean_cosine"] < 0.2 * (1.0 - after["mean_cosine"])


def test_mmc_uses_many_prototypes_and_when_broken_one():
    objective = make_objective("mmc")

    @jax.jit
    def chosen(variables):
        features = objective.encode(variables, digits()[:256])["pooled"]
        cosines = objective.prototypes.apply({"params": variables["teacher"]["prototypes"]}, features)
        return jnp.argmax(cosines - variables["state"]["centre"][None], axis=1)

    used = [len(np.unique(chosen(training.end))) for training in trainings("mmc")]
    assert used[0] >= PROTOTYPES // 4 and used[1] == 1
