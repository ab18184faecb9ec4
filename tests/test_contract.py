"""Properties every method has; a new file under mim_jax/methods/ is enrolled by being there."""

import functools
import json
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mim_jax
from mim_jax.training import sharding
from mim_jax.training.checkpoint import Checkpointer
from mim_jax.training.paths import STACKED, leaf_names
from tests.tiny import METHODS, clock, synthetic_batch, tiny_config
from tests.training.runs import TinyRun, single_device_mesh


class Subject:
    """One method with everything that several properties need, made once."""

    def __init__(self, method: str):
        self.method = method
        self.run = TinyRun(tiny_config(method), single_device_mesh())
        self.objective = self.run.objective
        self.batch = synthetic_batch(self.objective)
        self.variables = self.run.fresh_state().variables
        self.masks = jax.jit(self.objective.masks)(self.variables, self.batch, jax.random.key(2), clock())
        self.loss = jax.jit(self.objective.loss)

    @functools.cached_property
    def other_masks(self):
        """Of another key; of other images as well where a method decides by them alone."""
        masks = jax.jit(self.objective.masks)
        other = masks(self.variables, self.batch, jax.random.key(9), clock())
        if same(other, self.masks):
            other = masks(self.variables, synthetic_batch(self.objective, seed=1), jax.random.key(9), clock())
        return other

    @functools.cached_property
    def loss_and_aux(self):
        return self.loss(self.variables, self.batch, self.masks, jax.random.key(3), clock())

    @functools.cached_property
    def gradients(self):
        """Of the loss with respect to params and teacher."""
        return self.gradients_at(self.variables)

    def gradients_at(self, variables):
        """The same at other variables."""
        trained = {k: v for k, v in variables.items() if k in ("params", "teacher")}
        return self._gradient(trained, {k: v for k, v in variables.items() if k not in trained})

    @functools.cached_property
    def _gradient(self):
        def loss(trained, others):
            return self.objective.loss({**others, **trained}, self.batch, self.masks, jax.random.key(3), clock())[0]

        return jax.jit(jax.grad(loss))

    @functools.cached_property
    def trajectory(self):
        """Six updates on ever new batches, the state after each."""
        states, rows = [self.run.fresh_state()], []
        for _ in range(6):
            state, row = self.run.train(1, states[-1])
            states.append(state)
            rows += row
        return states, rows

    def variant(self, overrides: dict) -> mim_jax.Objective:
        return mim_jax.create(tiny_config(self.method, overrides))


@pytest.fixture(params=METHODS, scope="module")
def subject(request) -> Iterator[Subject]:
    """One method after the other, so that what the last one compiled can be let go."""
    yield Subject(request.param)
    jax.clear_caches()


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def relative(a, b) -> float:
    return float(abs(a - b) / abs(b))


def test_blocks_are_where_optimisers_look_for_layers(subject):
    names = leaf_names(subject.variables["params"])
    assert all(STACKED in name for name in names if "attention/" in name)


def test_loss_needs_no_randomness(subject):
    """Without it there is no drop path and no dropout, and two calls agree."""
    loss = jax.jit(lambda v: subject.objective.loss(v, subject.batch, subject.masks, None, clock())[0])
    assert np.isfinite(loss(subject.variables))


def test_variables_are_known_collections(subject):
    assert "params" in subject.variables
    assert set(subject.variables) <= {"params", "teacher", "state"}
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(subject.variables["params"])}
    assert dtypes == {jnp.dtype(jnp.float32)}


def test_loss_is_a_finite_float32_scalar_with_named_terms(subject):
    loss, aux = subject.loss_and_aux
    assert loss.shape == () and loss.dtype == jnp.float32 and bool(jnp.isfinite(loss))
    assert aux["terms"]
    assert all(term.shape == () for term in aux["terms"].values())
    assert ("state" in subject.variables) == ("state" in aux)


def test_jit_equals_eager(subject):
    masks = subject.objective.masks(subject.variables, subject.batch, jax.random.key(2), clock())
    jax.tree.map(np.testing.assert_array_equal, masks, subject.masks)
    loss, _ = subject.objective.loss(subject.variables, subject.batch, subject.masks, jax.random.key(3), clock())
    assert relative(loss, subject.loss_and_aux[0]) < 1e-5


def test_mask_leaves_lead_with_the_batch(subject):
    for leaf in jax.tree.leaves(subject.masks):
        assert leaf.shape[0] == 16


def test_masks_depend_on_what_they_are_given_alone(subject):
    again = jax.jit(subject.objective.masks)(subject.variables, subject.batch, jax.random.key(2), clock())
    jax.tree.map(np.testing.assert_array_equal, again, subject.masks)
    assert subject.masks is None or not same(subject.other_masks, subject.masks)


def test_injected_masks_are_what_the_loss_uses(subject):
    if subject.masks is None:
        pytest.skip("this method hides nothing")
    loss, _ = subject.loss(subject.variables, subject.batch, subject.other_masks, jax.random.key(3), clock())
    assert float(loss) != float(subject.loss_and_aux[0])
    rolled = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), (subject.batch, subject.masks))
    loss, _ = subject.loss(subject.variables, *rolled, jax.random.key(3), clock())
    if subject.run.config.model.drop_path == 0.0:  # else the drop-path draw stays where it was
        assert relative(loss, subject.loss_and_aux[0]) < 1e-4


def test_gradients_reach_every_parameter(subject):
    def without(gradients):
        names = leaf_names(gradients)
        return {n for n, g in zip(names, jax.tree.leaves(gradients), strict=True) if not np.abs(g).max() > 0}

    dead = without(subject.gradients["params"])
    if dead:  # by an initialisation at zero of what comes after: for the first update only
        dead &= without(subject.gradients_at(subject.trajectory[0][2].variables)["params"])
    assert not dead


def test_gradients_equal_finite_differences(subject):
    params, gradients = subject.variables["params"], subject.gradients["params"]
    scale = np.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(gradients)))
    direction = jax.tree.map(lambda g: g / scale, gradients)

    def along(distance):
        moved = jax.tree.map(lambda p, d: p + distance * d, params, direction)
        variables = {**subject.variables, "params": moved}
        return float(subject.loss(variables, subject.batch, subject.masks, jax.random.key(3), clock())[0])

    def slope(step):
        return (along(step) - along(-step)) / (2 * step)

    step = 2e-3  # small beside SimMIM's initial weights, large beside float32's rounding of the loss
    # Richardson's extrapolation, which leaves out what the loss's third derivative adds.
    assert (4 * slope(step / 2) - slope(step)) / 3 == pytest.approx(scale, rel=0.02)


def test_the_teacher_gets_no_gradient(subject):
    for leaf in jax.tree.leaves(subject.gradients.get("teacher", {})):
        assert not np.abs(leaf).max() > 0


def test_loss_falls(subject):
    _, rows = subject.run.train(8, same_batch=True)
    losses = [row["loss"] for row in rows]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-2:]) < losses[0]


def test_steps_are_deterministic_in_seed_and_step(subject):
    states, rows = subject.trajectory
    _, again = subject.run.train(2)
    assert [row["loss"] for row in again] == [row["loss"] for row in rows[:2]]
    # The same variables and batch at another step draw other masks.
    step = jax.device_put(jnp.int32(5), states[0].step.sharding)  # elsewhere it would be compiled anew
    later, _ = subject.run.step(states[0].replace(step=step), subject.run.batch(0))
    sooner = jax.tree.leaves(states[1].variables["params"])
    assert any(
        not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(later.variables["params"]), sooner, strict=True)
    )


def test_resume_is_bitwise(subject, tmp_path):
    states, _ = subject.trajectory
    checkpointer = Checkpointer(tmp_path, asynchronous=False)
    checkpointer.save(states[3], {"config": {}})
    checkpointer.close()
    template = subject.run.abstract_state
    restored = Checkpointer(tmp_path).restore_latest(template, lambda meta: None)
    resumed, _ = subject.run.train(3, restored)
    jax.tree.map(np.testing.assert_array_equal, resumed, states[6])


def test_eight_devices_equal_one(subject):
    config = tiny_config(subject.method, {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2})
    run = TinyRun(config, sharding.make_mesh(config.mesh))
    _, rows = run.train(3)
    expected = [row["loss"] for row in subject.trajectory[1][:3]]
    np.testing.assert_allclose([row["loss"] for row in rows], expected, rtol=2e-5)


def test_scan_equals_loop(subject):
    scanned = subject.variant({"compute.scan": True, "compute.remat": "full"})
    loss, _ = jax.jit(scanned.loss)(subject.variables, subject.batch, subject.masks, jax.random.key(3), clock())
    assert relative(loss, subject.loss_and_aux[0]) < 1e-5


def test_bfloat16_is_close_to_float32(subject):
    half = subject.variant({"compute.dtype": "bfloat16"})
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm mixes its float32 statistics with bfloat16 inputs
        loss, _ = jax.jit(half.loss)(subject.variables, subject.batch, subject.masks, jax.random.key(3), clock())
    assert loss.dtype == jnp.float32
    assert relative(loss, subject.loss_and_aux[0]) < 0.03


def test_encode_gives_tokens_and_a_pooled_feature(subject):
    features = jax.eval_shape(subject.objective.encode, subject.variables, subject.batch["image"])
    batch, num_tokens, width = features["tokens"].shape
    assert batch == 16 and num_tokens > 1
    assert features["pooled"].shape == (16, width)
    assert features["pooled"].dtype == jnp.float32


def test_update_keeps_the_tree_and_the_parameters(subject):
    updated = jax.jit(subject.objective.update)(subject.variables, clock(4))
    assert jax.tree.structure(updated) == jax.tree.structure(subject.variables)
    jax.tree.map(np.testing.assert_array_equal, updated["params"], subject.variables["params"])


def test_config_round_trip(subject):
    config = subject.run.config
    again = mim_jax.resolve(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()
