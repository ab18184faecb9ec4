import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mim_jax.errors import ConfigError
from mim_jax.layers.masked_norm import BatchNorm
from mim_jax.layers.sites import Sites, sites_of

ACTIVE = jnp.asarray([[[1, 0], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [1, 0]]], bool)
SITES = {"all": Sites(), "masked": sites_of(ACTIVE), "gathered": sites_of(ACTIVE, 1)}


@pytest.mark.parametrize("name", SITES)
def test_it_is_pytorchs_norm_of_the_list_of_visible_sites(name):
    peer = torch.nn.BatchNorm1d(4)
    sites, x = SITES[name], np.random.default_rng(0).normal(1.0, 2.0, (3, 4, 4, 4)).astype(np.float32)
    seen = np.repeat(np.repeat(ACTIVE, 2, axis=1), 2, axis=2) if name != "all" else np.ones((3, 4, 4), bool)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), sites.enter(x), sites)

    @jax.jit
    def train(variables):
        out, changed = norm.apply(variables, sites.enter(x), sites, train=True, mutable=["batch_stats"])
        return sites.leave(out), {**variables, **changed}

    for _ in range(2):
        expected = peer(torch.from_numpy(x[seen])).detach()
        out, variables = train(variables)
        np.testing.assert_allclose(out[seen], expected, rtol=1e-5, atol=1e-5)
        assert (np.asarray(out)[~seen] == 0.0).all()
    np.testing.assert_allclose(variables["batch_stats"]["mean"], peer.running_mean, rtol=1e-5)
    np.testing.assert_allclose(variables["batch_stats"]["var"], peer.running_var, rtol=1e-5)
    out = sites.leave(norm.apply(variables, sites.enter(x), sites))
    np.testing.assert_allclose(out[seen], peer.eval()(torch.from_numpy(x[seen])).detach(), rtol=1e-5, atol=1e-5)


def test_one_site_has_no_variance():
    norm, x = BatchNorm(), jnp.ones((1, 1, 1, 3))
    variables = norm.init(jax.random.key(0), x, Sites())
    with pytest.raises(ConfigError, match="batch_size"):
        norm.apply(variables, x, Sites(), train=True, mutable=["batch_stats"])
