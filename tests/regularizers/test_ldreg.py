"""LDReg's estimators: the checks of ldreg.md, and PyTorch's numbers and gradients (torch.cdist's)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mim_jax.errors import ConfigError
from mim_jax.regularizers import ldreg

ESTIMATORS = ("mom", "mom_epsilon", "mle")


def normal(n, dimensions, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dimensions)).astype(np.float32)


def uniform(n, dimensions, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, dimensions)).astype(np.float32)


def dimensions_of(features, k, estimator="mom", reference=None):
    return ldreg.local_dimensions(
        jnp.asarray(features), jnp.asarray(features if reference is None else reference), k, estimator
    )


def official_dimensions(features, reference, k, estimator, mode="donot_use_mm_for_euclid_dist"):
    """Steps 1 to 3 of ldreg.md."""
    distances, _ = torch.cdist(features, reference, compute_mode=mode).sort(dim=1)
    k = min(k, len(features) - 2)
    near, last = distances[:, 1:k], distances[:, k]
    if estimator == "mle":
        return -k / torch.log(near / last[:, None] + 1e-4).sum(dim=1)
    mean = near.mean(dim=1)
    return mean / (last - mean + (1e-4 if estimator == "mom_epsilon" else 0.0))


def value_and_gradients(features, reference, k, estimator, sign="absolute"):
    def penalty(features, reference):
        return ldreg.penalty(ldreg.local_dimensions(features, reference, k, estimator), sign)

    return jax.jit(jax.value_and_grad(penalty, argnums=(0, 1)))(jnp.asarray(features), jnp.asarray(reference))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("k", [4, 8, 500])
def test_dimensions_and_gradients_are_pytorchs(estimator, k):
    """With more rows in the reference than on the device, whose number bounds k."""
    reference = normal(48, 6)
    theirs = torch.tensor(reference[:12], requires_grad=True)
    expected = official_dimensions(theirs, torch.tensor(reference), k, estimator)
    ours = dimensions_of(reference[:12], ldreg.num_neighbors(k, 12), estimator, reference)
    np.testing.assert_allclose(ours, expected.detach().numpy(), rtol=2e-5)
    for sign in ("absolute", "signed"):
        theirs.grad = None
        log = torch.log(expected)
        loss = -(log.abs() if sign == "absolute" else log).mean()
        loss.backward(retain_graph=True)
        value, (gradient, of_reference) = value_and_gradients(
            reference[:12], reference, ldreg.num_neighbors(k, 12), estimator, sign
        )
        assert float(value) == pytest.approx(loss.item(), rel=1e-5)
        scale = theirs.grad.abs().max().item()
        np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=0, atol=2e-5 * scale)
        assert not np.abs(of_reference).max() > 0


def test_gradients_would_differ_if_the_reference_were_trained():
    """What detaching leaves out is not small."""
    features = normal(24, 4)

    def penalty(x, reference):
        distances = ldreg.neighbor_distances(x, reference, 8)
        return ldreg.penalty(ldreg.method_of_moments(distances))

    both = jax.grad(lambda x: penalty(x, x))(jnp.asarray(features))
    theirs = torch.tensor(features, requires_grad=True)
    (-torch.log(official_dimensions(theirs, theirs, 8, "mom")).abs().mean()).backward()
    np.testing.assert_allclose(both, theirs.grad.numpy(), atol=2e-5 * theirs.grad.abs().max().item())
    detached = value_and_gradients(features, features, 8, "mom")[1][0]
    assert np.abs(detached - both).max() > 0.1 * np.abs(both).max()


def test_hand_cases():
    distances = jnp.arange(1, 9, dtype=jnp.float32)[None]
    # mu is the mean of 1..k-1, k/2.
    assert ldreg.method_of_moments(distances).tolist() == [1.0]
    assert ldreg.method_of_moments(distances, 1.0).tolist() == [pytest.approx(4.0 / 5.0)]
    expected = -8 / sum(np.log(j / 8 + 1e-4) for j in range(1, 8))
    assert ldreg.maximum_likelihood(distances).tolist() == [pytest.approx(expected, rel=1e-6)]


def test_the_sample_itself_is_no_neighbor_and_the_rest_ascends():
    points = np.array([[0.0], [3.0], [4.0], [10.0]], np.float32)
    distances = ldreg.neighbor_distances(jnp.asarray(points), jnp.asarray(points), 2)
    assert distances.tolist() == [[3.0, 4.0], [1.0, 3.0], [1.0, 4.0], [6.0, 7.0]]


@pytest.mark.parametrize("dimension", [2, 4])
def test_uniform_points_have_the_dimension_of_their_cube(dimension):
    mean = float(dimensions_of(uniform(600, dimension), 16).mean())
    assert mean == pytest.approx(dimension, rel=0.1)


@pytest.mark.parametrize("estimator", ["mom", "mle"])
def test_scale_and_rotation_do_not_matter(estimator):
    points = np.pad(uniform(100, 3), ((0, 0), (0, 5)))
    rotation, _ = np.linalg.qr(normal(8, 8, seed=1))
    expected = dimensions_of(points, 16, estimator)
    np.testing.assert_allclose(dimensions_of(37.0 * points, 16, estimator), expected, rtol=1e-4)
    np.testing.assert_allclose(dimensions_of(points @ rotation, 16, estimator), expected, rtol=1e-3)


def test_points_on_a_line_have_dimension_one():
    points = np.outer(uniform(600, 1)[:, 0], normal(1, 8, seed=1)[0])
    dimensions = dimensions_of(points, 64)
    assert float(dimensions.mean()) == pytest.approx(1.0, abs=0.05)
    assert abs(float(ldreg.penalty(dimensions, "signed"))) < 0.05
    assert -0.2 < float(ldreg.penalty(dimensions)) < 0.0


def test_the_estimators_agree_on_gaussian_data():
    mom, mle = (float(dimensions_of(normal(400, 16), 32, estimator).mean()) for estimator in ("mom", "mle"))
    assert mom == pytest.approx(mle, rel=0.2)


def test_the_sign_matters_below_one_only():
    dimensions = jnp.asarray([0.5, 2.0, 8.0], jnp.float32)
    assert float(ldreg.penalty(dimensions)) == pytest.approx(-np.log(2 * 2 * 8) / 3)
    assert float(ldreg.penalty(dimensions, "signed")) == pytest.approx(-np.log(8) / 3)
    slope = {sign: jax.grad(lambda d, sign=sign: ldreg.penalty(d, sign))(dimensions) for sign in ("absolute", "signed")}
    assert slope["absolute"][0] > 0 > slope["signed"][0]  # descent makes it smaller, or larger
    assert slope["absolute"][1:].tolist() == slope["signed"][1:].tolist()


def test_close_points_far_from_the_origin_keep_their_distances():
    """Float32 differences against float64; the matrix-product formula is off by more than a tenth, or not a number."""
    points = (100.0 + 1e-3 * normal(32, 8)).astype(np.float32)
    exact = official_dimensions(torch.tensor(points).double(), torch.tensor(points).double(), 8, "mom").numpy()
    np.testing.assert_allclose(dimensions_of(points, 8), exact, rtol=1e-4)
    product = official_dimensions(torch.tensor(points), torch.tensor(points), 8, "mom", "use_mm_for_euclid_dist")
    assert not np.allclose(product.numpy(), exact, rtol=0.1)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_pair_of_duplicates_has_pytorchs_gradient(estimator):
    """Its distance is 0 though it is not of a sample to itself."""
    features = normal(16, 4)
    features[5] = features[3]
    theirs = torch.tensor(features, requires_grad=True)
    loss = -torch.log(official_dimensions(theirs, torch.tensor(features), 6, estimator)).abs().mean()
    loss.backward()
    value, (gradient, _) = value_and_gradients(features, features, 6, estimator)
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=0, atol=2e-5 * theirs.grad.abs().max().item())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_samples_without_a_dimension_are_left_out(estimator):
    """Of samples with k duplicates all distances are 0; the official code's loss is not finite then."""
    features = normal(24, 4)
    features[:8] = 50.0  # nobody else's neighbours
    dimensions = dimensions_of(features, 6, estimator)
    defined = np.asarray(ldreg.is_defined(dimensions))
    assert not defined[:8].any() and defined[8:].all()
    value, (gradient, _) = value_and_gradients(features, features, 6, estimator)
    assert float(value) == pytest.approx(-np.abs(np.log(dimensions[8:])).mean(), rel=1e-5)
    assert np.isfinite(gradient).all() and np.abs(gradient[8:]).max() > 0
    mean = float(ldreg.mean_over_defined(dimensions, dimensions))
    assert mean == pytest.approx(float(dimensions[8:].mean()), rel=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_collapsed_batch_gives_nothing_and_breaks_nothing(estimator):
    features = np.ones((8, 4), np.float32)
    value, (gradient, _) = value_and_gradients(features, features, 4, estimator)
    assert float(value) == 0.0
    assert not np.abs(gradient).max() > 0


def test_equally_far_neighbors_have_no_dimension_by_the_plain_estimators():
    distances = jnp.full((1, 4), 2.0)
    assert np.isinf(ldreg.method_of_moments(distances)).all()
    assert np.isinf(ldreg.maximum_likelihood(distances)).all()
    assert float(ldreg.method_of_moments(distances, 1e-4)[0]) == pytest.approx(2e4, rel=1e-3)


@pytest.mark.parametrize(
    ("k", "rows", "local_batch", "expected"), [(64, 512, None, 64), (64, 32, None, 30), (64, 512, 16, 14), (2, 4, 9, 2)]
)
def test_neighbors_are_bounded_by_the_local_rows(k, rows, local_batch, expected):
    assert ldreg.num_neighbors(k, rows, local_batch) == expected


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_too_few_rows_are_refused(rows):
    with pytest.raises(ConfigError, match=rf"{rows} samples are too few; use \(micro-\)batches of at least 4"):
        ldreg.num_neighbors(64, rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(weight=-1.0), "weight is -1.0; it must not be negative"),
        (dict(k=1), "k is 1; an estimate needs at least 2"),
        (dict(estimator="mean"), "estimator is 'mean'; choose one of mom, mom_epsilon, mle"),
        (dict(sign="l1"), "sign is 'l1'; choose 'absolute' or 'signed'"),
        (dict(local_batch=2), "local_batch is 2; it must be at least 4"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    section = ldreg.default_config()
    section.update(change)
    with pytest.raises(ConfigError, match=message):
        ldreg.check_config(section)
