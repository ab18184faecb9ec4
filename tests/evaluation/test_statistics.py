import numpy as np
import pytest

from mim_jax.evaluation.statistics import representation_statistics


def test_isotropic_features_have_full_rank_and_no_common_direction():
    rng = np.random.default_rng(0)
    found = representation_statistics(rng.normal(size=(20_000, 16)).astype(np.float32) * 3)
    assert found["feature_std"] == pytest.approx(3.0, rel=0.02)
    assert found["effective_rank"] == pytest.approx(16.0, rel=0.01)
    assert found["mean_cosine"] == pytest.approx(0.0, abs=0.01)


def test_identical_features_are_a_collapse():
    found = representation_statistics(np.tile(np.float32([1.0, -2.0, 0.5]), (50, 1)))
    assert found == {"feature_std": 0.0, "effective_rank": 0.0, "mean_cosine": pytest.approx(1.0)}


def test_features_on_a_line_have_rank_one():
    line = np.linspace(-1, 1, 101, dtype=np.float32)[:, None] * np.float32([[1.0, 2.0, 3.0, 4.0]])
    assert representation_statistics(line)["effective_rank"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("shape", [(7, 40), (40, 7)])
def test_closed_forms(shape):
    features = np.random.default_rng(1).normal(size=shape) + 0.5
    found = representation_statistics(features.astype(np.float32))
    singular = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    singular = singular[singular > 1e-9] / singular.sum()
    assert found["effective_rank"] == pytest.approx(np.exp(-(singular * np.log(singular)).sum()), rel=1e-4)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = (units @ units.T)[~np.eye(len(units), dtype=bool)]
    assert found["mean_cosine"] == pytest.approx(pairs.mean(), abs=1e-6)
    assert found["feature_std"] == pytest.approx(features.std(axis=0).mean(), rel=1e-5)


def test_one_example_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        representation_statistics(np.zeros((1, 3), np.float32))
