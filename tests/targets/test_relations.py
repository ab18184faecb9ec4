import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mim_jax.layers.relations import AttentionInputs, attention_map
from mim_jax.targets.relations import RELATIONS, divergence, relation_logits


@pytest.fixture
def logits():
    rng = np.random.default_rng(0)
    return [3 * rng.normal(size=(2, 4, 6, 6)).astype(np.float32) for _ in range(2)]


def test_divergence_equals_pytorchs(logits):
    teacher, student = (torch.tensor(x).log_softmax(-1) for x in logits)
    expected = torch.nn.functional.kl_div(student, teacher, log_target=True, reduction="sum") / (2 * 4 * 6)
    assert float(divergence(*logits)) == pytest.approx(float(expected), rel=1e-6)


def test_divergence_is_never_negative_and_zero_between_equals(logits):
    assert float(divergence(*logits)) > 0.0
    assert float(divergence(logits[0], logits[0])) == 0.0
    assert float(divergence(*logits)) != pytest.approx(float(divergence(*reversed(logits))), rel=1e-3)


def test_a_constant_in_a_row_changes_nothing(logits):
    teacher, student = logits
    shift = np.random.default_rng(1).normal(size=(2, 4, 6, 1)).astype(np.float32)
    shifted = divergence(teacher + shift, student - 2 * shift)
    assert float(shifted) == pytest.approx(float(divergence(teacher, student)), rel=1e-5)


def test_a_certain_teacher_gives_no_infinities():
    teacher = jnp.asarray([[200.0, 0.0, -200.0]])
    value, gradient = jax.value_and_grad(lambda x: divergence(teacher, x))(jnp.asarray([[0.0, 1.0, 2.0]]))
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_are_attention_maps_of_what_their_name_says(name):
    rng = np.random.default_rng(0)
    inputs = AttentionInputs(*(jnp.asarray(rng.normal(size=(2, 4, 5, 3)), jnp.float32) for _ in range(3)))
    first, second = name.split("_")
    relation = jax.nn.softmax(relation_logits(inputs, name))
    np.testing.assert_allclose(relation.sum(axis=-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(relation, attention_map(getattr(inputs, first), getattr(inputs, second)), rtol=1e-6)
