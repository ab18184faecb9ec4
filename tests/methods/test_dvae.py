import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.interop import WeightsWarning
from mim_jax.methods.dvae import logit_laplace_loss, relaxed_choice
from mim_jax.normalization import IMAGENET
from tests.interop.test_official_layouts import assert_equal, assert_round_trip
from tests.models import dvae_peer
from tests.tiny import clock, synthetic_batch

LAYOUT = "openai/dall_e"
MODEL = dict(width=32, groups=3, depth=2, num_codes=24, code_width=8)
END = mim_jax.Clock.at(8, total_steps=8, steps_per_epoch=4.0)


def make(**changes):
    model = {**MODEL, **changes.pop("model", {})}
    return mim_jax.create(dict(method="dvae", image_size=16, model=model, **changes))


@pytest.fixture(scope="module")
def states():
    kinds = ("encoder", "decoder")
    return {kind: dvae_peer.make_state(kind, 8, 3, 2, 24, 3, seed=seed) for seed, kind in enumerate(kinds)}


@pytest.fixture(scope="module")
def variables(states):
    return mim_jax.import_weights(make(), states, LAYOUT, strict=True)


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def batch(pixels):
    mean, std = (np.asarray(values, np.float32) for values in IMAGENET)
    return {"image": (pixels.permute(0, 2, 3, 1).numpy() - mean) / std}


def test_loss_of_a_relaxed_choice_is_pytorchs(states, variables, batch, pixels):
    """Without noise and at the last temperature and weight: every number of the description in turn."""
    logits = dvae_peer.encode(states["encoder"], pixels, 3, 2)
    codes = (logits * 16).softmax(1)
    location, log_scale = dvae_peer.decode(states["decoder"], codes, 3, 2).chunk(2, dim=1)
    squeezed = 0.8 * pixels + 0.1
    # The density of a value whose logit has a Laplace density, by the change of variables.
    density = torch.distributions.Laplace(location, log_scale.exp()).log_prob(squeezed.logit())
    density = density - squeezed.log() - (1 - squeezed).log()
    kl = (logits.softmax(1) * (logits.log_softmax(1) + np.log(24))).sum(1).mean() / (4 * 4 * 3)
    loss, aux = jax.jit(lambda: make().loss(variables, batch, None, None, END))()
    assert_equal(aux["latent"], logits.permute(0, 2, 3, 1))
    assert_equal(aux["prediction"], torch.cat([location, log_scale], dim=1).permute(0, 2, 3, 1))
    np.testing.assert_allclose(aux["terms"]["reconstruction"], -density.mean(), rtol=1e-5)
    np.testing.assert_allclose(aux["terms"]["kl"], kl, rtol=1e-5)
    np.testing.assert_allclose(loss, -density.mean() + 6.6 * kl, rtol=1e-5)
    counts = torch.bincount(logits.argmax(1).flatten(), minlength=24) / logits[:, 0].numel()
    np.testing.assert_allclose(aux["metrics"]["perplexity"], (-torch.special.xlogy(counts, counts).sum()).exp(), 1e-5)


def test_weights_go_out_as_they_came_in(states, variables, tmp_path):
    flat = {f"{kind}.{name}": tensor for kind, state in states.items() for name, tensor in state.items()}
    assert_round_trip(make(), variables, LAYOUT, flat, tmp_path)


def test_the_encoders_file_alone_leaves_the_decoder_random(states, variables):
    with pytest.warns(WeightsWarning, match="params/decoder"):
        partly = mim_jax.import_weights(make(), states["encoder"], LAYOUT)
    jax.tree.map(np.testing.assert_array_equal, partly["params"]["encoder"], variables["params"]["encoder"])


def test_the_density_integrates_to_one():
    x = jnp.linspace(0.0, 1.0, 200_001, dtype=jnp.float32)[1:-1]
    for location, log_scale in ((0.0, -0.5), (1.5, 0.3)):
        density = jnp.exp(-logit_laplace_loss(x, jnp.float32(location), jnp.float32(log_scale)))
        assert float(density.sum() * (x[1] - x[0])) == pytest.approx(1.0, abs=1e-3)


def test_schedules_go_where_they_should():
    objective = make(temperature_share=0.5, kl_share=0.25, kl_weight=4.0)
    temperatures = [float(objective.temperature(progress)) for progress in (0.0, 0.25, 0.5, 1.0)]
    np.testing.assert_allclose(temperatures, [1.0, (1 + 1 / 16) / 2, 1 / 16, 1 / 16], rtol=1e-6)
    np.testing.assert_allclose([float(objective.kl_weight(p)) for p in (0.0, 0.125, 0.25, 1.0)], [0, 2, 4, 4])


def test_noise_draws_each_token_as_often_as_the_logits_say():
    """At a low temperature the relaxed choice is one token, drawn from the softmax."""
    logits = jnp.asarray([2.0, 1.0, 0.0, -1.0], jnp.float32)
    codes = relaxed_choice(jax.random.key(0), jnp.tile(logits[None], (20_000, 1)), 0.01)
    np.testing.assert_allclose(codes.mean(axis=0), jax.nn.softmax(logits), atol=0.02)
    np.testing.assert_allclose(relaxed_choice(None, logits, 2.0), jax.nn.softmax(logits / 2.0), rtol=1e-6)


def test_noise_is_there_with_an_rng_only(variables, batch):
    loss = jax.jit(lambda rng: make().loss(variables, batch, None, rng, clock())[0])
    assert float(loss(jax.random.key(0))) != float(loss(jax.random.key(1)))


def test_pictures_are_made_of_the_likeliest_tokens(states, variables, batch, pixels):
    pictures = jax.jit(lambda: make().reconstruct(variables, batch, None))()
    hard = dvae_peer.encode(states["encoder"], pixels, 3, 2).argmax(1)
    codes = torch.nn.functional.one_hot(hard, 24).permute(0, 3, 1, 2).float()
    location = dvae_peer.decode(states["decoder"], codes, 3, 2)[:, :3]
    rebuilt = ((location.sigmoid() - 0.1) / 0.8).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    mean, std = (np.asarray(values, np.float32) for values in IMAGENET)
    np.testing.assert_allclose(pictures["reconstruction"], (rebuilt - mean) / std, atol=1e-4)
    np.testing.assert_array_equal(pictures["masked"], batch["image"])
    ids = make().encode(variables, batch["image"])["token_ids"]
    np.testing.assert_array_equal(ids, hard.flatten(1).numpy())


def test_images_of_other_sizes_are_refused():
    with pytest.raises(ConfigError, match="image_size 18x18 is not divisible by the 4 pixels of a token"):
        mim_jax.create(dict(method="dvae", image_size=18, model=MODEL))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(temperature_end=0.0), "temperature_end is 0.0"),
        (dict(model=dict(code_width=0)), r"model\.code_width is 0"),
        (dict(model=dict(backbone="vit")), "dvae has an encoder of its own, not model.backbone 'vit'"),
        (dict(model=dict(width=8)), r"model\.width is 8"),
    ],
)
def test_bad_values_are_refused(changes, match):
    with pytest.raises(ConfigError, match=match):
        make(**changes)


def test_it_hides_nothing():
    objective = make()
    assert objective.masks({}, synthetic_batch(objective, 2), jax.random.key(0), clock()) is None
