import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mim_jax.models import statistics


class Normed(nn.Module):
    """A layer with BatchNorm."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(3)(x))


X = jax.random.normal(jax.random.key(0), (8, 4))
NETWORKS = {"encoder": Normed(), "head": nn.Dense(2)}
PARTS = {name: network.init(jax.random.key(1), X) for name, network in NETWORKS.items()}


def test_parts_with_and_without_statistics_are_collected():
    variables = statistics.collect(PARTS)
    assert variables["params"].keys() == {"encoder", "head"} and variables["state"].keys() == {"encoder"}
    assert statistics.collect({"head": PARTS["head"]}).keys() == {"params"}


def test_training_moves_the_statistics_and_uses_those_of_the_batch():
    variables = statistics.collect(PARTS)
    output, state = statistics.apply(NETWORKS["encoder"], variables, "encoder", X, train=True)
    np.testing.assert_allclose(output.mean(axis=0), np.zeros(3), atol=1e-6)
    moved = state["encoder"]["BatchNorm_0"]["mean"]
    assert jnp.abs(moved).max() > 1e-3
    again, unchanged = statistics.apply(NETWORKS["encoder"], {**variables, "state": state}, "encoder", X)
    assert unchanged == {}
    assert jnp.abs(again - output).max() > 1e-3


def test_a_part_without_statistics_is_applied_as_it_is():
    variables = statistics.collect(PARTS)
    output, state = statistics.apply(NETWORKS["head"], variables, "head", X, train=True)
    np.testing.assert_array_equal(output, NETWORKS["head"].apply(PARTS["head"], X))
    assert state == {}


def test_a_part_may_be_a_teacher():
    variables = statistics.collect(PARTS)
    variables = {"teacher": variables["params"], "state": variables["state"]}
    frozen, _ = statistics.apply(NETWORKS["encoder"], variables, "encoder", X, collection="teacher")
    np.testing.assert_array_equal(frozen, NETWORKS["encoder"].apply(PARTS["encoder"], X))
