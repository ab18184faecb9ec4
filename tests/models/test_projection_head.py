import jax
import numpy as np
import pytest
import torch

from mim_jax.layers.batch_norm import initial_statistics
from mim_jax.models.projection_head import ProjectionHead


@pytest.fixture(scope="module")
def peer():
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(12)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    layers = (torch.nn.Linear(6, 12, bias=False), norm, torch.nn.ReLU(), torch.nn.Linear(12, 6, bias=False))
    return torch.nn.Sequential(*layers)


def test_outputs_and_statistics_equal_pytorchs_in_training_and_after(peer):
    state = {name: tensor.detach().numpy() for name, tensor in peer.state_dict().items()}
    params = {
        "fc1": {"kernel": state["0.weight"].T},
        "scale": state["1.weight"].copy(),
        "bias": state["1.bias"].copy(),
        "fc2": {"kernel": state["3.weight"].T},
    }
    head = ProjectionHead(12, 6)
    apply = jax.jit(lambda x, s, train: head.apply({"params": params}, x, s, train=train), static_argnums=2)
    statistics = initial_statistics(12)
    for seed in range(3):
        x = np.random.default_rng(seed).normal(1.0, 2.0, (5, 6)).astype(np.float32)
        ours, statistics = apply(x, statistics, True)
        np.testing.assert_allclose(ours, peer(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics["mean"], peer[1].running_mean.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics["variance"], peer[1].running_var.numpy(), rtol=1e-5)
    peer.eval()
    ours, after = apply(x[:1], statistics, False)
    np.testing.assert_allclose(ours, peer(torch.from_numpy(x[:1])).detach().numpy(), rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after, statistics)
