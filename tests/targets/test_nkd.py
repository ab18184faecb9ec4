import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.targets.nkd import normalized_distillation

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 6, 5)).astype(np.float32) * 3
LABELS = np.asarray([0, 4, 2, 2, 1, 3], np.int32)


def by_hand(student, teacher, labels):
    """g2sd.md, optional NKD loss: one example after the other, in float64."""
    total = 0.0
    for s, t, label in zip(student.astype(np.float64), teacher.astype(np.float64), labels, strict=True):
        p, q = np.exp(s) / np.exp(s).sum(), np.exp(t) / np.exp(t).sum()
        rest = np.arange(len(s)) != label
        total -= q[label] * np.log(p[label])
        total -= (q[rest] / q[rest].sum() * np.log(p[rest] / p[rest].sum())).sum()
    return total / len(labels)


def test_equals_the_sheets_formula():
    found = normalized_distillation(*map(jnp.asarray, (STUDENT, TEACHER, LABELS)))
    assert float(found) == pytest.approx(by_hand(STUDENT, TEACHER, LABELS), rel=1e-5)


def test_certain_networks_give_finite_losses_and_gradients():
    sure = 200.0 * np.eye(5, dtype=np.float32)[LABELS]
    gradient = jax.grad(lambda s: normalized_distillation(s, jnp.asarray(sure), jnp.asarray(LABELS)))
    for student in (sure, -sure, STUDENT):
        assert np.isfinite(normalized_distillation(*map(jnp.asarray, (student, sure, LABELS))))
        assert np.isfinite(gradient(jnp.asarray(student))).all()


def test_the_others_term_does_not_see_the_target_class():
    """Shifting the target's logits changes the first term alone, which a teacher that doubts it makes vanish."""
    doubts = TEACHER - 60.0 * np.eye(5, dtype=np.float32)[LABELS]
    shifted = STUDENT + 2.0 * np.eye(5, dtype=np.float32)[LABELS]
    before, after = (float(normalized_distillation(*map(jnp.asarray, (s, doubts, LABELS)))) for s in (STUDENT, shifted))
    assert after == pytest.approx(before, rel=1e-5)
    certain = float(normalized_distillation(*map(jnp.asarray, (shifted, TEACHER, LABELS))))
    assert certain != pytest.approx(by_hand(STUDENT, TEACHER, LABELS), rel=1e-2)
