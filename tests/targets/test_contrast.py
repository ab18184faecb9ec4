import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mim_jax.targets.contrast import info_nce


@pytest.mark.parametrize(("count", "temperature"), [(2, 0.2), (8, 0.2), (8, 1.0)])
def test_matched_orthonormal_features(count, temperature):
    features = jnp.eye(count, 10)
    expected = 2 * temperature * math.log(1 + (count - 1) * math.exp(-1 / temperature))
    assert float(info_nce(features, features, temperature)) == pytest.approx(expected, rel=1e-5)
    assert float(info_nce(7.0 * features, 0.1 * features, temperature)) == pytest.approx(expected, rel=1e-5)
    # The positive is the diagonal: shifted keys are all wrong.
    assert float(info_nce(features, jnp.roll(features, 1, axis=0), temperature)) > expected + 1.0


def test_it_is_moco_v3s_loss_and_gradient():
    rng = np.random.default_rng(0)
    queries, keys = (rng.normal(size=(6, 5)).astype(np.float32) for _ in range(2))
    q = torch.tensor(queries, requires_grad=True)
    logits = F.normalize(q, dim=1) @ F.normalize(torch.from_numpy(keys), dim=1).T / 0.2
    theirs = F.cross_entropy(logits, torch.arange(6)) * 0.4
    theirs.backward()
    ours, (to_queries, to_keys) = jax.value_and_grad(info_nce, argnums=(0, 1))(queries, keys, 0.2)
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)
    np.testing.assert_allclose(to_queries, q.grad.numpy(), rtol=1e-4, atol=1e-6)
    assert not np.asarray(to_keys).any()
