import numpy as np
import pytest

from mim_jax.evaluation import knn
from tests.evaluation.meshes import mesh_of


def reference(bank, bank_labels, queries, k, temperature, num_classes):
    """DINO's vote, one query at a time in float64."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    similarity = unit(queries.astype(np.float64)) @ unit(bank.astype(np.float64)).T
    predictions = []
    for row in similarity:
        nearest = np.argsort(-row, kind="stable")[:k]
        votes = np.zeros(num_classes)
        for index in nearest:
            votes[bank_labels[index]] += np.exp(row[index] / temperature)
        predictions.append(votes.argmax())
    return np.array(predictions)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 8))
    labels = rng.integers(0, 5, 83).astype(np.int32)
    features = (centres[labels] + 0.8 * rng.normal(size=(83, 8))).astype(np.float32)
    return features[:50], labels[:50], features[50:], labels[50:]


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_accuracy_equals_a_loop_over_queries(problem, monkeypatch, temperature):
    bank, bank_labels, queries, labels = problem
    monkeypatch.setattr(knn, "_MAX_CHUNK", 16)  # 33 queries: two full chunks and a padded one
    ks = (1, 3, 20, 50)
    found = knn.knn_accuracy(
        bank, bank_labels, queries, labels, ks=ks, temperature=temperature, num_classes=5, mesh=mesh_of(8)
    )
    expected = {k: 100 * np.mean(reference(bank, bank_labels, queries, k, temperature, 5) == labels) for k in ks}
    assert found == pytest.approx(expected)
    assert max(found.values()) > 30.0 and (temperature < 0.5 or len(set(found.values())) > 2)


def test_k_of_one_is_the_nearest_neighbour_and_scales_do_not_matter(problem):
    bank, bank_labels, queries, _ = problem
    options = dict(ks=(1, 20), temperature=0.07, num_classes=5)
    predicted = np.asarray(knn.knn_predict(bank, bank_labels, queries, **options))
    directions = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    assert (predicted[0] == bank_labels[(queries @ directions.T).argmax(axis=1)]).all()
    scales = np.random.default_rng(1).uniform(0.01, 100.0, (len(bank), 1)).astype(np.float32)
    rescaled = knn.knn_predict(bank * scales, bank_labels, queries * np.float32(7.0), **options)
    assert (np.asarray(rescaled) == predicted).all()


def test_temperature_decides_between_one_near_and_two_farther_neighbours():
    at = lambda cosine: [cosine, np.sqrt(1 - cosine**2)]
    bank = np.array([at(0.9), at(0.8), at(0.8)], np.float32)
    labels, query = np.array([1, 0, 0], np.int32), np.array([[1.0, 0.0]], np.float32)
    # exp(0.1 / 0.07) = 4.2 outweighs two votes; exp(0.1 / 1) = 1.1 does not.
    for temperature, expected in ((0.07, 1), (1.0, 0), (1e-4, 1)):
        predicted = knn.knn_predict(bank, labels, query, ks=(3,), temperature=temperature, num_classes=2)
        assert int(predicted[0, 0]) == expected


def test_the_bank_is_searched_not_sorted():
    bank, queries = np.zeros((4096, 4), np.float32), np.zeros((8, 4), np.float32)
    options = dict(ks=(5, 20), temperature=0.07, num_classes=3)
    lowered = knn.knn_predict.lower(bank, np.zeros(4096, np.int32), queries, **options)
    program = lowered.compile({"xla_backend_optimization_level": "3"}).as_text()
    assert "TopK" in program
    assert " sort(" not in program


def test_features_of_zero_length_give_no_nan():
    normalized = np.asarray(knn.normalize(np.array([[0.0, 0.0], [3.0, 4.0]], np.float32)))
    np.testing.assert_allclose(normalized, [[0.0, 0.0], [0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("ks", [(0,), (51,), ()])
def test_impossible_k_is_refused(problem, ks):
    bank, bank_labels, queries, labels = problem
    with pytest.raises(ValueError, match="1 <= k <= 50"):
        knn.knn_accuracy(bank, bank_labels, queries, labels, ks=ks, temperature=0.07, num_classes=5, mesh=mesh_of(1))
