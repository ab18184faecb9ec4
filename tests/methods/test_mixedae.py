import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.interop import WeightsWarning
from mim_jax.masking.mixed import MixedMask, random_owners
from mim_jax.planning.compilation import compile_step
from mim_jax.training import sharding
from tests.interop import test_official_layouts as official
from tests.tiny import ROOT, clock, synthetic_batch, tiny_config
from tests.training.runs import TinyRun, single_device_mesh

SIZE, IMAGES, PATCHES = 4, 8, 16  # of a group; of the batch; of an image
TINY = dict(
    image_size=16,
    model=dict(width=16, depth=2, heads=4, patch_size=4),
    decoder=dict(width=8, depth=1, heads=2),
    batch_size=IMAGES,
)
PLAIN = dict(model=dict(**TINY["model"], class_token=False, pool="mean"))


def make(method="mixedae", **changes):
    return mim_jax.create({**TINY, "method": method, **changes})


@pytest.fixture(scope="module")
def mixedae():
    return make()


@pytest.fixture(scope="module")
def batch(mixedae):
    return synthetic_batch(mixedae, IMAGES)


@pytest.fixture(scope="module")
def variables(mixedae, batch):
    """With every parameter of order one, so that no term is negligible."""
    variables = jax.jit(lambda: mixedae.init(jax.random.key(0), batch))()
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.map(jnp.add, variables, jax.tree.unflatten(structure, noise))


@pytest.fixture(scope="module")
def owners():
    return random_owners(jax.random.key(3), IMAGES // SIZE, PATCHES, SIZE)


@pytest.fixture(scope="module")
def masks(owners):
    return MixedMask.from_owners(owners, SIZE)


def run(objective, variables, batch, masks):
    return jax.jit(lambda v, b, m: objective.loss(v, b, m, jax.random.key(0), clock()))(variables, batch, masks)


def test_parameters_are_maes_and_the_segments():
    objective = mim_jax.create(mim_jax.load_config(str(ROOT / "configs" / "mixedae_vit_b16_in1k.py")))
    params = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())["params"]
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    assert count == {"encoder": 85_647_360, "decoder": 26_008_320, "segment": 3_072}
    # The sheet counts MAE's fixed position tables among its parameters.
    assert sum(count.values()) + 197 * (768 + 512) == 111_907_840 + 3_072


@pytest.fixture(scope="module")
def oracle(variables):
    """Attention restricted to the own image, no class token, no segments; with variables to suit."""
    objective = make(homologous=dict(attention="oracle"), **PLAIN)
    params = variables["params"]
    encoder = {name: value for name, value in params["encoder"].items() if name != "class_token"}
    segment = jax.tree.map(jnp.zeros_like, params["segment"])
    return objective, {"params": {"encoder": encoder, "decoder": params["decoder"], "segment": segment}}


def test_with_an_oracle_it_is_mae_on_every_source_image(oracle, batch, masks):
    objective, variables = oracle
    loss, aux = run(objective, variables, batch, masks)
    mae = make("mae", **PLAIN)
    parts = {name: variables["params"][name] for name in ("encoder", "decoder")}
    expected, theirs = run(mae, {"params": parts}, batch, masks.owned)
    for name in ("latent", "prediction", "target"):
        np.testing.assert_allclose(aux[name], theirs[name], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(aux["terms"]["reconstruction"], expected, rtol=1e-6)
    assert float(loss) == pytest.approx(float(expected + 0.1 * aux["terms"]["homologous"]), rel=1e-6)


def test_only_an_oracle_keeps_images_apart(oracle, mixedae, variables, batch, masks):
    other = {"image": batch["image"].at[1:].multiply(-1.0)}
    objective, apart = oracle
    alone, among = (run(objective, apart, b, masks)[1]["prediction"][0] for b in (batch, other))
    np.testing.assert_array_equal(alone, among)
    alone, among = (run(mixedae, variables, b, masks)[1]["prediction"][0] for b in (batch, other))
    assert not np.allclose(alone, among)


def torch_top_k_attention(state, name, x, heads, k):
    count, width = x.shape[1:]
    qkv = official.linear(state, f"{name}.qkv", x).view(len(x), count, 3, heads, width // heads)
    q, key, v = qkv.permute(2, 0, 3, 1, 4)
    logits = q @ key.transpose(2, 3) / (width // heads) ** 0.5
    best = logits[..., 1:].topk(k, dim=-1).indices + 1
    kept = torch.zeros_like(logits).scatter(-1, best, 1.0).bool()
    kept[..., 0] = True
    weights = logits.masked_fill(~kept, float("-inf")).softmax(-1)
    return official.linear(state, f"{name}.proj", (weights @ v).transpose(1, 2).reshape(len(x), count, width))


def torch_mixedae(state, segment, images, owners):
    """Reconstruction and contrast as the sheet's steps 2 to 9 write them: one mixed image in raster order per group."""
    groups = len(owners)
    members = images.view(SIZE, groups, *images.shape[1:])
    pixel_owner = owners.view(groups, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
    mixed = sum((pixel_owner == j)[:, None] * members[j] for j in range(SIZE))
    x = official.embed(state, mixed) + official.sincos(16, False) + segment[owners]
    x = official.with_class_token(state, x)
    for layer in range(2):
        name = f"blocks.{layer}"
        x = x + torch_top_k_attention(state, f"{name}.attn", official.norm(state, f"{name}.norm1", x), 4, 4)
        hidden = official.linear(state, f"{name}.mlp.fc1", official.norm(state, f"{name}.norm2", x))
        x = x + official.linear(state, f"{name}.mlp.fc2", torch.nn.functional.gelu(hidden))
    z = official.norm(state, "norm", x)

    terms = []
    for group in range(groups):
        unit = torch.nn.functional.normalize(z[group, 1:], dim=-1)
        scores = (unit @ unit.T / 0.25).exp().fill_diagonal_(0.0)
        for anchor in range(PATCHES):
            shares = scores[anchor] / scores[anchor].sum()
            positive = (owners[group] == owners[group, anchor]).index_fill(0, torch.tensor(anchor), False)
            terms.append(-shares[positive].log().mean())

    errors = []
    for j in range(SIZE):
        own = (owners == j)[..., None]
        y = official.linear(state, "decoder_embed", z)
        y = torch.cat([y[:, :1], torch.where(own, y[:, 1:], state["mask_token"])], dim=1) + official.sincos(8, True)
        y = official.norm(state, "decoder_norm", official.blocks(state, "decoder_blocks", y, 2))
        prediction = official.linear(state, "decoder_pred", y)[:, 1:]
        patches = members[j].unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(groups, PATCHES, -1)
        deviation = (patches.var(-1, keepdim=True, unbiased=True) + 1e-6).sqrt()
        target = (patches - patches.mean(-1, keepdim=True)) / deviation
        errors.append((prediction - target).square().mean(-1)[~own[..., 0]])
    return torch.cat(errors).mean(), torch.stack(terms).mean()


def test_forward_pass_equals_pytorchs_in_raster_order(mixedae, variables, batch, owners, masks, tmp_path):
    with pytest.warns(WeightsWarning, match="does not hold params/segment"):
        file = mim_jax.export_weights(mixedae, variables, tmp_path, "facebookresearch/mae")
    state = {name: torch.from_numpy(array) for name, array in load_file(file).items()}
    segment = torch.from_numpy(np.array(variables["params"]["segment"]["embedding"]))
    images = torch.from_numpy(np.array(batch["image"])).permute(0, 3, 1, 2)
    expected = torch_mixedae(state, segment, images, torch.from_numpy(np.array(owners)).long())
    _, aux = run(mixedae, variables, batch, masks)
    np.testing.assert_allclose(aux["terms"]["reconstruction"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(aux["terms"]["homologous"], expected[1], rtol=1e-5)


def test_attention_is_restricted_in_the_chosen_blocks_alone(mixedae, variables, batch, masks):
    latents = {
        blocks: run(make(homologous=dict(blocks=blocks)), variables, batch, masks)[1]["latent"]
        for blocks in (None, (0, 1), (0,), ())
    }
    unrestricted = [
        run(make(homologous=choice), variables, batch, masks)[1]["latent"]
        for choice in (dict(attention="all"), dict(keep=PATCHES))
    ]
    np.testing.assert_allclose(latents[()], unrestricted[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(unrestricted[1], unrestricted[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(latents[0, 1], latents[None], rtol=1e-5, atol=1e-5)
    assert not np.allclose(latents[0,], latents[None], atol=1e-3)
    assert not np.allclose(latents[0,], latents[()], atol=1e-3)


def test_segments_of_the_sources_reach_the_mixed_image(mixedae, variables, batch, masks):
    params = variables["params"]
    swapped = {"params": {**params, "segment": jax.tree.map(lambda x: jnp.flip(x, 0), params["segment"])}}
    reversed_members = masks.replace(segment=SIZE - 1 - masks.segment)
    expected = float(run(mixedae, variables, batch, masks)[0])
    assert float(run(mixedae, swapped, batch, masks)[0]) != pytest.approx(expected, rel=1e-4)
    assert float(run(mixedae, swapped, batch, reversed_members)[0]) == pytest.approx(expected, rel=1e-6)


def test_the_contrast_stops_at_the_encoder_and_owned_predictions_do_not_count(mixedae, variables, batch, masks):
    def contrast(params):
        _, aux = mixedae.loss({"params": params}, batch, masks, jax.random.key(0), clock())
        return aux["terms"]["homologous"]

    gradient = jax.jit(jax.grad(contrast))(variables["params"])
    assert not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["decoder"]))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves((gradient["encoder"], gradient["segment"])))
    _, aux = run(mixedae, variables, batch, masks)
    error = np.square(aux["prediction"] - aux["target"]).mean(axis=-1)
    expected = error[np.asarray(masks.owned.mask)].mean()
    np.testing.assert_allclose(aux["terms"]["reconstruction"], expected, rtol=1e-6)


def test_the_picture_is_the_mixed_image_and_keeps_owned_patches(mixedae, variables, batch, masks, owners):
    pictures = jax.jit(mixedae.reconstruct)(variables, batch, masks)
    pixel_owner = np.asarray(owners).reshape(2, 4, 4).repeat(4, 1).repeat(4, 2)
    images = np.asarray(batch["image"]).reshape(SIZE, 2, 16, 16, 3)
    mixed = np.take_along_axis(images, pixel_owner[None, ..., None], axis=0)[0]
    np.testing.assert_array_equal(pictures["masked"], np.tile(mixed, (SIZE, 1, 1, 1)))
    own = np.tile(pixel_owner, (SIZE, 1, 1)) == np.repeat(np.arange(SIZE), 2)[:, None, None]
    np.testing.assert_allclose(np.asarray(pictures["reconstruction"])[own], np.asarray(batch["image"])[own], atol=1e-6)


def test_micro_batches_and_eight_devices_give_the_same_step():
    """One optimiser step on whole groups, however the batch is cut; SGD, whose update is the gradient itself."""
    plain = {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "schedule.warmup": "0 steps", "optimizer.lr": 0.1}
    plain |= {"model.depth": 1, "decoder.depth": 1}

    def step(changes, mesh):
        config = tiny_config("mixedae", {**plain, **changes})
        tiny = TinyRun(config, mesh or sharding.make_mesh(config.mesh))
        state, rows = tiny.train(1)
        return rows[0], jax.device_get(state.variables["params"])

    expected, params = step({}, single_device_mesh())
    accumulated = step({"accumulation_steps": 2}, single_device_mesh())
    sharded = step({"mesh.data": 4, "mesh.fsdp": 2}, None)
    for row, others in (accumulated, sharded):
        for name in ("loss", "terms/reconstruction", "terms/homologous", "grad_norm"):
            assert row[name] == pytest.approx(expected[name], rel=2e-5), name
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), others, params)


def test_devices_exchange_the_tokens_of_their_images_and_nothing_larger():
    changes = {"batch_size": 128, "model.depth": 1, "decoder.depth": 1, "compute.scan": True, "mesh.data": 8}
    config = tiny_config("mixedae", changes)
    usage = compile_step(TinyRun(config, sharding.make_mesh(config.mesh)))
    tokens = 16 * 16 * 16 * 4  # bytes on a device: 16 images of 16 tokens of 16 floats
    moved = [c.num_bytes for c in usage.collectives if c.kind not in ("all-reduce", "reduce-scatter")]
    assert max(moved) == tokens
    assert max(c.num_bytes for c in usage.collectives) <= usage.params_bytes


def test_the_contrast_leaves_chance():
    changes = {"segment_std": 0.5, "contrast_weight": 1.0, "schedule.warmup": "5 steps", "duration": "80 steps"}
    run = TinyRun(tiny_config("mixedae", {**changes, "optimizer.lr": 2e-3}), single_device_mesh())
    _, rows = run.train(40)
    chance = np.log(run.objective.encoder.num_patches - 1)
    assert rows[-1]["terms/homologous"] < 0.85 * chance


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(batch_size=10), "batch of 10 images is not divisible by group_size 4"),
        (dict(accumulation_steps=4), "accumulation_steps 4"),
        (dict(group_size=1), "group_size is 1"),
        (dict(group_size=3), "group_size is 3"),
        (dict(group_size=16), "group_size is 16"),
        (dict(contrast_temperature=0.0), "contrast_temperature is 0.0"),
        (dict(homologous=dict(attention="best")), r"homologous\.attention is 'best'"),
        (dict(homologous=dict(keep=17)), r"homologous\.keep is 17"),
        (dict(homologous=dict(blocks=(0, 2))), r"homologous\.blocks names block 2"),
    ],
)
def test_bad_values_are_refused_before_any_computation(change, match):
    with pytest.raises(ConfigError, match=match):
        make(**change)


def test_a_batch_that_breaks_a_group_is_refused(mixedae, variables):
    with pytest.raises(ConfigError, match="batch of 6 images is not divisible by group_size 4"):
        mixedae.masks(variables, synthetic_batch(mixedae, 6), jax.random.key(0), clock())
