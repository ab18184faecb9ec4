import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.interop.exporting import to_tensors
from mim_jax.interop.layout import find_layout
from mim_jax.interop.report import WeightsWarning
from mim_jax.models.crate import crate_size
from tests.tiny import ROOT, clock

LAYOUT = "Ma-Lab-Berkeley/CRATE"
WIDTH, DEPTH, HEADS, PATCH, GRID, KEEP = 16, 3, 4, 4, 4, 5
MODEL = dict(backbone="crate", patch_size=PATCH, width=WIDTH, depth=DEPTH, heads=HEADS)
TINY = dict(method="crate_mae", image_size=GRID * PATCH, model=MODEL, decoder=dict(depth=2, heads=2))


def sincos():
    """The table `[1, 1 + N, D]`: zeros for the class token; the first half of the channels encodes the column."""
    quarter = WIDTH // 4
    rows = [[0.0] * WIDTH]
    for row in range(GRID):
        for column in range(GRID):
            angles = [[position / 10000 ** (k / quarter) for k in range(quarter)] for position in (column, row)]
            rows.append([f(angle) for half in angles for f in (math.sin, math.cos) for angle in half])
    return torch.tensor(rows, dtype=torch.float64).float()[None]


def attention_shapes(name):
    out = {f"{name}.fn.to_out.0.weight": (WIDTH, WIDTH), f"{name}.fn.to_out.0.bias": (WIDTH,)}
    return {f"{name}.fn.qkv.weight": (WIDTH, WIDTH), **out}


def norm_shapes(name):
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def official_state(depth=DEPTH, decoder_depth=2):
    """A random state_dict of the official masked autoencoder, in which every layer matters."""
    shapes = {"cls_token": (1, 1, WIDTH), "mask_token": (1, 1, WIDTH)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)}
    for stack, first, count in (("blocks", True, depth), ("decoder_blocks", False, decoder_depth)):
        for layer in range(count):
            attention, linear = (f"{stack}.{layer}.layers.0.{place}" for place in ((0, 1) if first else (1, 0)))
            shapes |= {**attention_shapes(attention), f"{linear}.fn.weight": (WIDTH, WIDTH)}
            shapes |= {**norm_shapes(f"{attention}.norm"), **norm_shapes(f"{linear}.norm")}
    shapes |= {**norm_shapes("norm"), **norm_shapes("decoder_norm")}
    shapes |= {"decoder_embed.weight": (WIDTH, WIDTH), "decoder_embed.bias": (WIDTH,)}
    shapes |= {"decoder_pred.weight": (PATCH * PATCH * 3, WIDTH), "decoder_pred.bias": (PATCH * PATCH * 3,)}
    generator = torch.Generator().manual_seed(0)
    state = {"pos_embed": sincos(), "decoder_pos_embed": sincos()}
    for name, shape in shapes.items():
        scale = 0.5 if len(shape) != 2 else 1.5 / math.sqrt(shape[1])
        is_norm = name.endswith("norm.weight")
        state[name] = scale * torch.randn(shape, generator=generator) + float(is_norm)
    return state


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state, name, x, eps):
    return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], eps)


def attend(state, name, x, heads):
    x = norm(state, f"{name}.norm", x, 1e-5)
    w = linear(state, f"{name}.fn.qkv", x).unflatten(-1, (heads, -1)).transpose(1, 2)
    weights = (w @ w.transpose(2, 3) / math.sqrt(WIDTH // heads)).softmax(-1)
    return linear(state, f"{name}.fn.to_out.0", (weights @ w).transpose(1, 2).flatten(2))


def sparsify(state, name, x):
    z = norm(state, f"{name}.norm", x, 1e-5)
    dictionary = state[f"{name}.fn.weight"]
    gradient = z @ dictionary - (z @ dictionary.T) @ dictionary
    return F.relu(z + 0.1 * gradient - 0.1 * 0.5)


def encode(state, images, restore=None, keep=GRID * GRID):
    """crate_mae.md, steps 1 to 5: the output of every block, and the latent."""
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    if restore is not None:
        x = torch.where((restore >= keep)[..., None], state["mask_token"], x)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + state["decoder_pos_embed"]
    layers = []
    for layer in range(DEPTH):
        x = x + attend(state, f"blocks.{layer}.layers.0.0", x, HEADS)
        x = sparsify(state, f"blocks.{layer}.layers.0.1", x)
        layers.append(x)
    return layers, norm(state, "norm", x, 1e-6)


def decode(state, x):
    """Step 6."""
    for layer in range(2):
        block = f"decoder_blocks.{layer}.layers.0"
        y = norm(state, f"{block}.0.norm", x, 1e-5) @ state[f"{block}.0.fn.weight"].T
        x = y - attend(state, f"{block}.1", y, 2)
    return linear(state, "decoder_pred", norm(state, "decoder_norm", x, 1e-6))[:, 1:]


def reference(state, images, noise, norm_pix=False):
    """Latent, prediction and loss."""
    restore = noise.argsort(dim=1).argsort(dim=1)
    _, latent = encode(state, images, restore, KEEP)
    prediction = decode(state, latent)
    patches = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # B, C, rows, columns, p, p
    target = patches.permute(0, 2, 3, 4, 5, 1).reshape(len(images), GRID * GRID, -1)
    if norm_pix:
        variance = target.var(-1, keepdim=True, unbiased=True)
        target = (target - target.mean(-1, keepdim=True)) / (variance + 1e-6).sqrt()
    hidden = (restore >= KEEP).float()
    error = (prediction - target).square().mean(-1)
    return latent, prediction, (error * hidden).sum() / hidden.sum()


def assert_equal(ours, theirs, tolerance=1e-5):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.fixture(scope="module")
def state():
    return official_state()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def batch(images):
    return {"image": jnp.asarray(images.permute(0, 2, 3, 1).numpy())}


@pytest.fixture(scope="module")
def noise():
    return torch.rand(3, GRID * GRID, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def masks(noise):
    return mim_jax.TokenMask.from_noise(jnp.asarray(noise.numpy()), KEEP)


@pytest.fixture(scope="module")
def crate_mae():
    return mim_jax.create(TINY)


@pytest.fixture(scope="module")
def variables(crate_mae, state):
    return mim_jax.import_weights(crate_mae, {"model": state, "epoch": 800}, LAYOUT, strict=True)


@pytest.fixture(scope="module")
def loss_and_gradient(crate_mae):
    def loss(variables, batch, masks):
        return crate_mae.loss(variables, batch, masks, jax.random.key(0), clock())

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope="module")
def result(variables, batch, masks, loss_and_gradient):
    return loss_and_gradient(variables, batch, masks)


def test_equals_the_official_computation(result, state, images, noise):
    (loss, aux), _ = result
    latent, prediction, expected = reference(state, images, noise)
    assert_equal(aux["latent"], latent)
    assert_equal(aux["prediction"], prediction)
    assert_equal(loss, expected, 1e-6)


def test_gradients_are_the_official_ones(crate_mae, result, state, images, noise):
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    reference(leaves, images, noise)[2].backward()
    name, context, layout = find_layout(crate_mae, LAYOUT)
    ours = to_tensors(context, layout, name, result[1])
    assert leaves.keys() - ours.keys() == {"pos_embed", "decoder_embed.weight", "decoder_embed.bias"}
    assert all(leaves[unused].grad is None for unused in leaves.keys() - ours.keys())
    for name in ours.keys() - {"decoder_pos_embed"}:
        assert_equal(ours[name], leaves[name].grad, 2e-5)


def test_normalised_pixels_are_the_official_ones(variables, batch, masks, state, images, noise):
    crate_mae = mim_jax.create({**TINY, "norm_pix_loss": True})
    loss, _ = jax.jit(crate_mae.loss)(variables, batch, masks, jax.random.key(0), clock())
    assert_equal(loss, reference(state, images, noise, norm_pix=True)[2])


def test_every_block_and_the_intact_image_are_the_official_ones(crate_mae, variables, state, batch, images):
    layers, latent = encode(state, images)
    features = jax.jit(crate_mae.encode)(variables, batch["image"])
    assert_equal(features["tokens"], latent[:, 1:])
    params = {"params": variables["params"]["encoder"]}
    _, ours = crate_mae.encoder.apply(params, batch["image"], return_layers=True)
    assert_equal(ours, torch.stack(layers))
    assert ours.min() == 0.0


def test_the_checkpoint_goes_out_as_it_came_in(crate_mae, variables, state, tmp_path):
    exported = load_file(mim_jax.export_weights(crate_mae, variables, tmp_path, LAYOUT))
    assert state.keys() - exported.keys() == {"pos_embed", "decoder_embed.weight", "decoder_embed.bias"}
    for name, tensor in exported.items():
        atol = 1e-6 if name.endswith("pos_embed") else 0.0
        np.testing.assert_allclose(tensor, state[name].numpy(), rtol=0, atol=atol, err_msg=name)


def test_a_classifier_takes_the_encoder(state, variables):
    config = mim_jax.default_config(task="classification", backbone="crate")
    config.update(image_size=GRID * PATCH, num_classes=5)
    config.model.update(MODEL)
    config.model.pool = "class"
    with pytest.warns(WeightsWarning) as warned:
        taken = mim_jax.import_weights(mim_jax.create(config), state, LAYOUT, parts=("encoder",))["params"]["encoder"]
    reasons = sorted(str(warning.message) for warning in warned)
    assert len(reasons) == 2 and "without: mask_token" in reasons[0] and "has no decoder" in reasons[1]
    theirs = {name: leaf for name, leaf in variables["params"]["encoder"].items() if name != "mask_token"}
    jax.tree.map(np.testing.assert_array_equal, taken, theirs)


def test_hidden_pixels_change_the_loss_and_no_prediction(variables, batch, masks, result, loss_and_gradient):
    (loss, aux), _ = result
    side = np.asarray(masks.mask).reshape(3, GRID, GRID)
    hidden = side.repeat(PATCH, axis=1).repeat(PATCH, axis=2)[..., None]
    other = {"image": jnp.where(hidden, 1.0 - batch["image"], batch["image"])}
    (other_loss, other_aux), _ = loss_and_gradient(variables, other, masks)
    np.testing.assert_array_equal(other_aux["latent"], aux["latent"])
    np.testing.assert_array_equal(other_aux["prediction"], aux["prediction"])
    assert abs(other_loss - loss) > 1e-2


def test_the_loss_is_the_mean_over_hidden_patches(result, masks):
    (loss, aux), _ = result
    error = np.square(np.asarray(aux["prediction"] - aux["target"])).mean(axis=-1)
    assert float(loss) == pytest.approx(error[np.asarray(masks.mask)].mean(), rel=1e-5)
    assert float(aux["terms"]["reconstruction"]) == float(loss)


@pytest.mark.parametrize("keep", [1, 15])
def test_sequences_are_as_long_whatever_is_hidden(crate_mae, variables, batch, noise, keep):
    masks = mim_jax.TokenMask.from_noise(jnp.asarray(noise.numpy()), keep)
    aux = jax.eval_shape(lambda: crate_mae.loss(variables, batch, masks, jax.random.key(0), clock()))[1]
    assert aux["latent"].shape == (3, 1 + GRID * GRID, WIDTH)
    assert aux["prediction"].shape == (3, GRID * GRID, PATCH * PATCH * 3)


def test_with_nothing_hidden_there_is_no_mean(variables, batch, masks, loss_and_gradient):
    (loss, aux), _ = loss_and_gradient(variables, batch, masks.replace(mask=jnp.zeros_like(masks.mask)))
    assert np.isnan(loss) and np.isfinite(aux["prediction"]).all()
    for ratio in (0.0, 1.0):
        with pytest.raises(ConfigError, match=f"mask_ratio is {ratio}"):
            mim_jax.create({**TINY, "mask_ratio": ratio})


def test_pictures_show_predictions_where_patches_are_hidden(crate_mae, variables, batch, masks, result):
    pictures = crate_mae.reconstruct(variables, batch, masks)
    ((_, aux), _), row, column = result, *divmod(int(masks.ids_hidden[0, 0]), GRID)
    patch = pictures["reconstruction"][0, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
    np.testing.assert_allclose(patch.reshape(-1), aux["prediction"][0, int(masks.ids_hidden[0, 0])], atol=1e-5)
    visible = np.asarray(pictures["masked"]) != 0.0
    np.testing.assert_array_equal(np.asarray(pictures["reconstruction"])[visible], np.asarray(batch["image"])[visible])


# The official totals have the unused decoder_embed and two fixed tables beside what is trained here.
@pytest.mark.parametrize(
    ("size", "official", "blocks"),
    [
        ("Ti", 11_555_328, 5_331_456),
        ("S", 25_405_824, 11_978_496),
        ("B", 44_638_464, 21_279_744),
        ("L", 154_274_560, 75_620_352),
    ],
)
def test_parameter_counts_are_the_official_ones(size, official, blocks):
    config = mim_jax.load_config(str(ROOT / "configs" / "crate_mae_b16_in1k.py"))
    config.model.update(crate_size(size))
    config.decoder.update(depth=config.model.depth, heads=config.model.heads)
    objective = mim_jax.create(config)
    params = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())["params"]
    width, depth = config.model.width, config.model.depth
    unused = width * width + width + 2 * 197 * width
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) + unused == official
    for part in ("encoder", "decoder"):
        count = sum(leaf.size for leaf in jax.tree.leaves(params[part]["stack"]))
        assert count == depth * (3 * width**2 + 5 * width) == blocks


@pytest.mark.parametrize(("name", "size"), [("crate_mae_b16_in1k", "B"), ("crate_mae_s16_in1k", "S")])
def test_the_recipes_have_the_official_sizes(name, size):
    objective = mim_jax.create(mim_jax.load_config(str(ROOT / "configs" / f"{name}.py")))
    encoder, decoder = objective.encoder, objective.decoder
    assert dict(width=encoder.width, depth=encoder.depth, heads=encoder.heads) == crate_size(size)
    assert (decoder.depth, decoder.heads) == (encoder.depth, encoder.heads)
    assert (encoder.step_size, encoder.threshold, objective.num_keep) == (0.1, 0.5, 49)


def test_another_encoder_is_refused():
    with pytest.raises(ConfigError, match="crate"):
        mim_jax.create({**TINY, "model": {**MODEL, "backbone": "vit"}})
