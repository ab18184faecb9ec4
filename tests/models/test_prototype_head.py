import jax
import numpy as np
import pytest
import torch

from mim_jax.errors import ConfigError
from mim_jax.layers.compute import Compute
from mim_jax.models import prototype_head
from mim_jax.models.prototype_head import PrototypeHead


def test_it_is_dinos_head():
    torch.manual_seed(0)
    layers = (torch.nn.Linear(6, 12), torch.nn.GELU(), torch.nn.Linear(12, 12), torch.nn.GELU(), torch.nn.Linear(12, 5))
    mlp = torch.nn.Sequential(*layers)
    last = torch.nn.Linear(5, 9, bias=False)
    x = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    bottleneck = torch.nn.functional.normalize(mlp(torch.from_numpy(x)), dim=-1)
    expected = bottleneck @ torch.nn.functional.normalize(last.weight, dim=1).T  # weight normalisation, gain 1
    params = {
        f"fc{number}": {"kernel": layer.weight.detach().numpy().T, "bias": layer.bias.detach().numpy()}
        for number, layer in enumerate(layers[::2], start=1)
    }
    params["prototypes"] = last.weight.detach().numpy().T
    ours = PrototypeHead(9, 12, 5).apply({"params": params}, x)
    np.testing.assert_allclose(ours, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    longer = {**params, "prototypes": 3.0 * params["prototypes"]}
    np.testing.assert_allclose(PrototypeHead(9, 12, 5).apply({"params": longer}, x), ours, rtol=1e-5, atol=1e-6)


def test_bfloat16_gives_float32_cosines():
    head = PrototypeHead(9, 12, 5, compute=Compute(dtype="bfloat16"))
    x = jax.random.normal(jax.random.key(0), (4, 6))
    cosines, variables = head.init_with_output(jax.random.key(1), x)
    assert cosines.dtype == np.float32 and variables["params"]["prototypes"].dtype == np.float32
    exact = PrototypeHead(9, 12, 5).apply(variables, x)
    assert np.abs(cosines - exact).max() < 0.03 and np.abs(exact).max() <= 1.0 + 1e-6


@pytest.mark.parametrize(("key", "value"), [("count", 1), ("hidden", 0), ("bottleneck", 0)])
def test_sizes_that_are_none(key, value):
    section = prototype_head.default_config()
    section[key] = value
    with pytest.raises(ConfigError, match=f"prototypes.{key} is {value}"):
        prototype_head.build(section, "xavier", Compute())
