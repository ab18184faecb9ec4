"""Masked token optimization as an addition to SimMIM's encoder and to MAE's decoder."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.training import sharding
from tests.interop import test_official_layouts as official
from tests.tiny import ROOT, clock, synthetic_batch, tiny_config
from tests.training.runs import TinyRun, single_device_mesh

SIZES = dict(width=16, depth=2, heads=4, patch_size=4)
TINY = {
    "simmim": dict(model=dict(**SIZES, drop_path=0.0), mask_patch_size=8),
    "mae": dict(model=SIZES, decoder=dict(width=8, depth=2, heads=2)),
}
OFF = dict(enabled=True, rho=(1.0, 1.0), spa_weight=0.0, e_weight=0.0, r_weight=0.0)
METHODS = tuple(TINY)
ON_AT = 4  # of 8 steps: after the warm-up
# Leaves none of eight hidden tokens to the first block, where all are equal and rounding would choose, and one to the
# second.
RHO = 0.12


def make(method, mto=None, **changes):
    return mim_jax.create(dict(method=method, image_size=16, **TINY[method], mto=mto or {}, **changes))


@functools.cache
def subject(method):
    """Variables of order one, a batch and masks."""
    objective = make(method)
    batch = synthetic_batch(objective, 4)
    variables = jax.jit(lambda: objective.init(jax.random.key(0), batch))()
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    variables = jax.tree.map(jnp.add, variables, jax.tree.unflatten(structure, noise))
    return variables, batch, objective.masks(variables, batch, jax.random.key(2), clock())


def run(objective, variables, batch, masks, step=ON_AT):
    return jax.jit(lambda v: objective.loss(v, batch, masks, jax.random.key(0), clock(step)))(variables)


def with_gradients(objective, variables, batch, masks):
    def loss(params):
        return objective.loss({**variables, "params": params}, batch, masks, jax.random.key(0), clock(ON_AT))

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


@pytest.mark.parametrize("method", METHODS)
def test_without_weights_and_recalibration_it_is_the_base_method(method):
    """But for rounding, since a compiler may put two programs together differently."""
    (loss, aux), gradients = with_gradients(make(method, OFF), *subject(method))
    (expected, base), base_gradients = with_gradients(make(method), *subject(method))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    close(loss, expected)
    for name in ("prediction", "latent", "target"):
        close(aux[name], base[name])
    jax.tree.map(close, gradients, base_gradients)
    assert set(base["terms"]) == {"reconstruction"} and "metrics" not in base


@pytest.mark.parametrize("method", METHODS)
def test_it_adds_no_parameter(method):
    shapes = [
        jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())
        for objective in (make(method), make(method, dict(enabled=True)))
    ]
    assert shapes[0] == shapes[1]


def torch_attention(state, name, x, bias):
    """SimMIM's attention with its weights `[B, H, T, T]`."""
    batch, count, width = x.shape
    qkv_bias = torch.cat([state[f"{name}.q_bias"], torch.zeros(width), state[f"{name}.v_bias"]])
    qkv = F.linear(x, state[f"{name}.qkv.weight"], qkv_bias).split(width, dim=-1)
    q, k, v = (part.view(batch, count, 4, -1).transpose(1, 2) for part in qkv)
    weights = (q @ k.transpose(2, 3) / math.sqrt(width // 4) + bias).softmax(-1)
    return official.linear(state, f"{name}.proj", (weights @ v).transpose(1, 2).reshape(batch, count, width)), weights


def torch_entropy(x, hidden):
    """Of each hidden token of each image, in raster order: rows of a tensor `[B, M]`."""
    rows = []
    for tokens, mask in zip(F.normalize(x, dim=-1), hidden, strict=True):
        share = (tokens[mask] @ tokens[~mask].T / 0.1).softmax(-1)
        rows.append(-(share * share.log()).sum(-1) / math.log(int((~mask).sum())))
    return torch.stack(rows)


def torch_mto(state, images, hidden):
    """L_spa, L_e and L_r of SimMIM with two blocks, and its pixel loss, by the sheet."""
    state = {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
    embedded = official.embed(state, images)
    similarity = F.cosine_similarity(embedded[~hidden], state["mask_token"][0], dim=-1).abs().mean()
    x = torch.where(hidden[..., None], state["mask_token"], embedded)
    x = official.with_class_token(state, x)
    relative = state["rel_pos_bias.relative_position_bias_table"][state["rel_pos_bias.relative_position_index"]]
    seen = F.pad(~hidden, (1, 0), value=True)
    heterogeneity, mass = [], []
    for layer in range(2):
        name = f"blocks.{layer}"
        entropy = torch_entropy(x[:, 1:], hidden)
        heterogeneity.append(entropy.mean())
        bias = relative.permute(2, 0, 1).repeat(len(x), 1, 1, 1)
        for image in range(len(x)):
            keys = torch.nonzero(hidden[image])[:, 0][entropy[image].argsort(stable=True)]
            excluded = keys[round(RHO * (layer + 1) / 2 * len(keys)) :] + 1
            for query in torch.nonzero(seen[image])[:, 0]:
                bias[image, :, query, excluded] = float("-inf")
        out, weights = torch_attention(state, f"{name}.attn", official.norm(state, f"{name}.norm1", x), bias)
        given = (weights * ~seen[:, None, None]).sum(-1).mean(1)
        mass.append((1 - (layer + 1) / 2) * given[seen].mean())
        x = x + state[f"{name}.gamma_1"] * out
        y = F.gelu(official.linear(state, f"{name}.mlp.fc1", official.norm(state, f"{name}.norm2", x)))
        x = x + state[f"{name}.gamma_2"] * official.linear(state, f"{name}.mlp.fc2", y)
    latent = official.norm(state, "norm", x)
    return latent, {"spa": sum(mass) / 2, "e": heterogeneity[1], "r": similarity}


def test_simmim_with_it_equals_pytorch():
    state = official.simmim_state()
    objective = make("simmim", dict(enabled=True, rho=(0.0, RHO)))
    variables = mim_jax.import_weights(objective, state, "microsoft/SimMIM", strict=True)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(2))
    hidden = noise.argsort(1).argsort(1) < 8
    latent, terms = torch_mto(state, images, hidden)
    masks = mim_jax.TokenMask.from_bool(hidden.numpy())
    loss, aux = run(objective, variables, official.as_batch(images), masks)
    official.assert_equal(aux["latent"], latent)
    for name, term in terms.items():
        np.testing.assert_allclose(aux["terms"][name], term.detach(), rtol=1e-5, err_msg=name)
    expected = aux["terms"]["reconstruction"] + 0.1 * float(sum(terms.values()))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (1, 0.5), (2, 1.0), (7, 1.0)])
def test_weights_rise_over_the_warm_up(step, share):
    objective = make("mae", dict(enabled=True, warmup=0.25, spa_weight=1.0, e_weight=2.0, r_weight=4.0))
    loss, aux = run(objective, *subject("mae"), step)
    terms = aux["terms"]
    expected = terms["reconstruction"] + share * (terms["spa"] + 2 * terms["e"] + 4 * terms["r"])
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def changed(variables, part, name):
    params = variables["params"]
    return {"params": {**params, part: {**params[part], name: params[part][name] + 1.0}}}


@pytest.mark.parametrize("rho", [(0.0, 0.0), (1.0, 1.0)])
def test_excluded_mask_tokens_cannot_be_seen_by_visible_tokens(rho):
    variables, batch, masks = subject("simmim")
    objective = make("simmim", dict(enabled=True, rho=rho))
    one = run(objective, variables, batch, masks)[1]["latent"]
    other = run(objective, changed(variables, "encoder", "mask_token"), batch, masks)[1]["latent"]
    visible = np.pad(~np.asarray(masks.mask), ((0, 0), (1, 0)), constant_values=True)
    assert np.array_equal(np.asarray(one)[visible], np.asarray(other)[visible]) == (rho == (0.0, 0.0))
    brighter = {"image": batch["image"] * 2.0}
    other = run(objective, variables, brighter, masks)[1]["latent"]
    assert not np.allclose(np.asarray(one)[~visible], np.asarray(other)[~visible], atol=1e-3)


def test_the_decoders_embedding_is_that_of_visible_tokens():
    """L_r of MAE by hand: the mask token beside the latents, projected, before positions are added."""
    variables, batch, masks = subject("mae")
    _, aux = run(make("mae", dict(enabled=True)), variables, batch, masks)
    decoder = jax.tree.map(np.asarray, variables["params"]["decoder"])
    embed, token = decoder["embed"], decoder["mask_token"]
    x = np.asarray(aux["latent"])[:, 1:] @ embed["kernel"] + embed["bias"]
    cosine = (x @ token) / np.linalg.norm(x, axis=-1) / np.linalg.norm(token)
    assert float(aux["terms"]["r"]) == pytest.approx(np.abs(cosine).mean(), rel=1e-5)


@pytest.mark.parametrize(("method", "part"), [("simmim", "encoder"), ("mae", "decoder")])
def test_the_input_term_moves_the_mask_token_alone(method, part):
    variables, batch, masks = subject(method)
    objective = make(method, dict(enabled=True))

    def term(params):
        return objective.loss({"params": params}, batch, masks, jax.random.key(0), clock())[1]["terms"]["r"]

    gradient = jax.jit(jax.grad(term))(variables["params"])
    assert np.abs(gradient[part]["mask_token"]).max() > 0
    gradient[part]["mask_token"] = jnp.zeros(())
    assert not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("method", METHODS)
def test_execution_choices_do_not_change_it(method):
    expected, aux = run(make(method, dict(enabled=True)), *subject(method))
    for compute in (dict(scan=False, attention="xla"), dict(scan=True, remat="full")):
        loss, other = run(make(method, dict(enabled=True), compute=compute), *subject(method))
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(other["latent"], aux["latent"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_keeps_the_terms_in_float32(method):
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm mixes its float32 statistics with bfloat16 inputs
        loss, aux = run(make(method, dict(enabled=True), compute=dict(dtype="bfloat16")), *subject(method))
    _, expected = run(make(method, dict(enabled=True)), *subject(method))
    assert loss.dtype == jnp.float32
    for name in ("e", "r"):  # not of attention, where a gate may fall otherwise
        assert float(aux["terms"][name]) == pytest.approx(float(expected["terms"][name]), rel=0.05)


def test_eight_devices_equal_one_and_the_loss_falls():
    on = {"mto.enabled": True, "mto.warmup": 0.0, "mto.rho": (0.0, 0.5), "model.depth": 1}

    def losses(changes, mesh):
        config = tiny_config("simmim", {**on, **changes})
        tiny = TinyRun(config, mesh or sharding.make_mesh(config.mesh))
        return [row["loss"] for row in tiny.train(4, same_batch=True)[1]]

    expected = losses({}, single_device_mesh())
    assert np.isfinite(expected).all() and expected[-1] < expected[0]
    np.testing.assert_allclose(losses({"mesh.data": 4, "mesh.fsdp": 2}, None), expected, rtol=2e-5)


@pytest.mark.parametrize("name", ["simmim_mto_vit_b16_in1k", "mae_mto_vit_b16_in1k"])
def test_recipes_are_those_of_the_base_method_at_half_the_epochs(name):
    config, base = (
        mim_jax.load_config(str(ROOT / "configs" / f"{file}.py")).to_dict() for file in (name, name.replace("_mto", ""))
    )
    assert config["mto"]["enabled"] and not base["mto"]["enabled"]
    assert 2 * int(config["duration"].split()[0]) == int(base["duration"].split()[0])
    different = {key for key in config if config[key] != base[key]}
    assert different <= {"mto", "duration", "schedule"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(temperature=0.0), r"mto\.temperature is 0\.0"),
        (dict(rho=(0.5,)), r"mto\.rho is \(0\.5,\)"),
        (dict(rho=(0.0, 1.5)), r"mto\.rho is \(0\.0, 1\.5\)"),
        (dict(warmup=2.0), r"mto\.warmup is 2\.0"),
    ],
)
def test_bad_values_are_refused_before_any_computation(change, match):
    with pytest.raises(ConfigError, match=match):
        make("simmim", change)
