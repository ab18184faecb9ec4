"""The official layouts against forward passes written here in PyTorch from the method sheets.

Every reference consumes a state_dict with the official names and shapes. It shares no code with the package: positions,
relative indices and patch orders are computed again.
"""

import math

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file

import mim_jax
from mim_jax.masking.multiblock import BlockMasks

WIDTH, DEPTH, HEADS, PATCH, GRID = 16, 2, 4, 4, 4
TOKENS = GRID * GRID
CLOCK = mim_jax.Clock.at(0, total_steps=10, steps_per_epoch=5)
KEY = jax.random.key(0)


def random_state(shapes, seed=0):
    """A state_dict of normal numbers, weights scaled so that every layer matters."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name, shape):
        scale = 0.5 if len(shape) < 2 else 1.5 / math.sqrt(math.prod(shape[1:]))
        noise = scale * torch.randn(shape, generator=generator)
        is_norm = name.endswith(".weight") and len(shape) == 1
        return noise + 1 if is_norm else noise

    return {name: draw(name, shape) for name, shape in shapes.items()}


def linear_shapes(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm_shapes(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def block_shapes(name, width):
    return {
        **norm_shapes(f"{name}.norm1", width),
        **linear_shapes(f"{name}.attn.qkv", 3 * width, width),
        **linear_shapes(f"{name}.attn.proj", width, width),
        **norm_shapes(f"{name}.norm2", width),
        **linear_shapes(f"{name}.mlp.fc1", 4 * width, width),
        **linear_shapes(f"{name}.mlp.fc2", width, 4 * width),
    }


def encoder_shapes(prefix=""):
    shapes = {
        f"{prefix}patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        f"{prefix}patch_embed.proj.bias": (WIDTH,),
        **norm_shapes(f"{prefix}norm", WIDTH),
    }
    for layer in range(DEPTH):
        shapes |= block_shapes(f"{prefix}blocks.{layer}", WIDTH)
    return shapes


def sincos(width, class_row):
    """The table of mae.md: the first half of the channels encodes the column, the second half the row."""
    quarter = width // 4
    rows = []
    for row in range(GRID):
        for column in range(GRID):
            angles = [[position / 10000 ** (k / quarter) for k in range(quarter)] for position in (column, row)]
            rows.append([f(angle) for half in angles for f in (math.sin, math.cos) for angle in half])
    table = torch.tensor(rows, dtype=torch.float64).float()
    return torch.cat([torch.zeros(1, width), table])[None] if class_row else table[None]


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def attention(state, name, x, heads, logit_bias):
    batch, count, width = x.shape
    if f"{name}.q_bias" in state:
        bias = torch.cat([state[f"{name}.q_bias"], torch.zeros(width), state[f"{name}.v_bias"]])
    else:
        bias = state[f"{name}.qkv.bias"]
    q, k, v = F.linear(x, state[f"{name}.qkv.weight"], bias).split(width, dim=-1)
    q, k, v = (part.view(batch, count, heads, -1).transpose(1, 2) for part in (q, k, v))
    logits = (q / math.sqrt(width // heads)) @ k.transpose(2, 3)
    weights = (logits if logit_bias is None else logits + logit_bias).softmax(-1)
    return linear(state, f"{name}.proj", (weights @ v).transpose(1, 2).reshape(batch, count, width))


def blocks(state, name, x, heads, logit_bias=None):
    for layer in range(sum(key.startswith(f"{name}.") and key.endswith(".norm1.bias") for key in state)):
        block = f"{name}.{layer}"
        gamma1 = state.get(f"{block}.gamma_1", state.get(f"{block}.ls1.gamma", 1.0))
        gamma2 = state.get(f"{block}.gamma_2", state.get(f"{block}.ls2.gamma", 1.0))
        x = x + gamma1 * attention(state, f"{block}.attn", norm(state, f"{block}.norm1", x), heads, logit_bias)
        hidden = F.gelu(linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", x)))
        x = x + gamma2 * linear(state, f"{block}.mlp.fc2", hidden)
    return x


def embed(state, images, prefix=""):
    name = f"{prefix}patch_embed.proj"
    x = F.conv2d(images, state[f"{name}.weight"], state[f"{name}.bias"], stride=PATCH)
    return x.flatten(2).transpose(1, 2)


def with_class_token(state, x, prefix=""):
    return torch.cat([state[f"{prefix}cls_token"].expand(len(x), -1, -1), x], dim=1)


def gather(x, ids):
    return torch.stack([row[index] for row, index in zip(x, ids, strict=True)])


@pytest.fixture
def images():
    return torch.randn(3, 3, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(1))


def as_batch(images, **more):
    return {"image": images.permute(0, 2, 3, 1).numpy(), **more}


def assert_equal(ours, theirs):
    """Within 1e-5 of the largest number."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def assert_round_trip(objective, variables, layout, state, out_dir):
    """Export gives back the state_dict bit by bit; fixed tables, which are computed anew, to float32's last digit."""
    exported = load_file(mim_jax.export_weights(objective, variables, out_dir, layout))
    assert exported.keys() == state.keys()
    for name, tensor in state.items():
        tensor = tensor.numpy()
        assert exported[name].dtype == tensor.dtype
        if name.endswith("pos_embed"):
            np.testing.assert_allclose(exported[name], tensor, atol=1e-6)
        else:
            np.testing.assert_array_equal(exported[name], tensor)


def mae_state():
    width = 8
    shapes = {
        "cls_token": (1, 1, WIDTH),
        **encoder_shapes(),
        "mask_token": (1, 1, width),
        **linear_shapes("decoder_embed", width, WIDTH),
        **block_shapes("decoder_blocks.0", width),
        **norm_shapes("decoder_norm", width),
        **linear_shapes("decoder_pred", PATCH * PATCH * 3, width),
    }
    tables = {"pos_embed": sincos(WIDTH, True), "decoder_pos_embed": sincos(width, True)}
    return random_state(shapes) | tables


def mae_reference(state, images, noise, keep):
    """Latent, prediction and loss of mae.md, steps 1 to 8."""
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    x = gather(embed(state, images) + state["pos_embed"][:, 1:], order[:, :keep])
    x = torch.cat([(state["cls_token"] + state["pos_embed"][:, :1]).expand(len(x), -1, -1), x], dim=1)
    latent = norm(state, "norm", blocks(state, "blocks", x, HEADS))
    y = linear(state, "decoder_embed", latent)
    masks = state["mask_token"].expand(len(y), TOKENS - keep, -1)
    tokens = gather(torch.cat([y[:, 1:], masks], dim=1), restore)
    y = torch.cat([y[:, :1], tokens], dim=1) + state["decoder_pos_embed"]
    y = norm(state, "decoder_norm", blocks(state, "decoder_blocks", y, 2))
    prediction = linear(state, "decoder_pred", y)[:, 1:]
    patches = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # B, C, rows, columns, p, p
    target = patches.permute(0, 2, 3, 4, 5, 1).reshape(len(images), TOKENS, -1)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True, unbiased=True) + 1e-6).sqrt()
    hidden = (restore >= keep).float()
    error = (prediction - target).square().mean(-1)
    return latent, prediction, (error * hidden).sum() / hidden.sum()


def test_mae_end_to_end(tiny, images, tmp_path):
    objective, state = tiny("mae"), mae_state()
    variables = mim_jax.import_weights(objective, {"model": state, "epoch": 1600}, "facebookresearch/mae")
    noise = torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(2))
    latent, prediction, expected = mae_reference(state, images, noise, keep=4)
    masks = mim_jax.TokenMask.from_noise(noise.numpy(), 4)
    loss, aux = jax.jit(objective.loss)(variables, as_batch(images), masks, KEY, CLOCK)
    assert_equal(aux["latent"], latent)
    assert_equal(aux["prediction"], prediction)
    assert_equal(loss, expected)
    assert_round_trip(objective, variables, "facebookresearch/mae", state, tmp_path)


def finetuned_state():
    shapes = {"cls_token": (1, 1, WIDTH), **encoder_shapes(), **linear_shapes("head", 5, WIDTH)}
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("norm.")}
    shapes |= {**norm_shapes("fc_norm", WIDTH), "pos_embed": (1, 1 + TOKENS, WIDTH)}
    return random_state(shapes)


def test_mae_fine_tuned_classifier(tiny, images, tmp_path):
    objective, state = tiny("classification"), finetuned_state()
    variables = mim_jax.import_weights(objective, {"model": state}, "facebookresearch/mae", strict=True)
    x = with_class_token(state, embed(state, images) + state["pos_embed"][:, 1:])
    x[:, 0] += state["pos_embed"][0, 0]
    pooled = blocks(state, "blocks", x, HEADS)[:, 1:].mean(1)
    expected = linear(state, "head", norm(state, "fc_norm", pooled))
    assert_equal(jax.jit(objective.predict)(variables, as_batch(images)["image"]), expected)
    assert_round_trip(objective, variables, "facebookresearch/mae", state, tmp_path)


def test_mae_linear_probe(tiny, images):
    objective = tiny("linear_probe")
    shapes = {"cls_token": (1, 1, WIDTH), **encoder_shapes(), **linear_shapes("head.1", 5, WIDTH)}
    state = random_state(shapes | {"head.0.running_mean": (WIDTH,)}) | {"pos_embed": sincos(WIDTH, True)}
    state["head.0.running_var"] = torch.rand(WIDTH, generator=torch.Generator().manual_seed(5)) + 0.5
    counter = {"head.0.num_batches_tracked": torch.tensor(7)}
    variables = mim_jax.import_weights(objective, {"model": state | counter}, "facebookresearch/mae", strict=True)
    x = with_class_token(state, embed(state, images) + state["pos_embed"][:, 1:])
    feature = norm(state, "norm", blocks(state, "blocks", x, HEADS))[:, 0]
    feature = (feature - state["head.0.running_mean"]) / (state["head.0.running_var"] + 1e-6).sqrt()
    assert_equal(jax.jit(objective.predict)(variables, as_batch(images)["image"]), linear(state, "head.1", feature))


def simmim_index():
    """relative_position_index of simmim.md, with the three rows of the class token."""
    size = 2 * GRID - 1
    index = torch.zeros(1 + TOKENS, 1 + TOKENS, dtype=torch.int64)
    for query in range(TOKENS):
        for key in range(TOKENS):
            dy, dx = query // GRID - key // GRID, query % GRID - key % GRID
            index[1 + query, 1 + key] = (dy + GRID - 1) * size + dx + GRID - 1
    index[0, 1:], index[1:, 0], index[0, 0] = size**2, size**2 + 1, size**2 + 2
    return index


def simmim_state():
    shapes = {
        "encoder.cls_token": (1, 1, WIDTH),
        "encoder.mask_token": (1, 1, WIDTH),
        **encoder_shapes("encoder."),
        "encoder.rel_pos_bias.relative_position_bias_table": ((2 * GRID - 1) ** 2 + 3, HEADS),
        "decoder.0.weight": (PATCH * PATCH * 3, WIDTH, 1, 1),
        "decoder.0.bias": (PATCH * PATCH * 3,),
    }
    for layer in range(DEPTH):
        block = f"encoder.blocks.{layer}"
        shapes |= {f"{block}.gamma_1": (WIDTH,), f"{block}.gamma_2": (WIDTH,)}
        shapes |= {f"{block}.attn.q_bias": (WIDTH,), f"{block}.attn.v_bias": (WIDTH,)}
        del shapes[f"{block}.attn.qkv.bias"]
    return random_state(shapes) | {"encoder.rel_pos_bias.relative_position_index": simmim_index()}


def simmim_reference(state, images, hidden):
    """Latent, reconstruction `[B, 3, H, W]` and loss of simmim.md, steps 2 to 5."""
    w = hidden.float()[..., None]
    x = embed(state, images, "encoder.") * (1 - w) + state["encoder.mask_token"] * w
    table = state["encoder.rel_pos_bias.relative_position_bias_table"]
    bias = table[state["encoder.rel_pos_bias.relative_position_index"]].permute(2, 0, 1)
    x = blocks(state, "encoder.blocks", with_class_token(state, x, "encoder."), HEADS, bias)
    latent = norm(state, "encoder.norm", x)
    grid = latent[:, 1:].transpose(1, 2).reshape(len(x), WIDTH, GRID, GRID)
    prediction = F.conv2d(grid, state["decoder.0.weight"], state["decoder.0.bias"])
    picture = F.pixel_shuffle(prediction, PATCH)
    mask = hidden.float().view(-1, 1, GRID, GRID).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    loss = ((images - picture).abs() * mask).sum() / (mask.sum() + 1e-5) / 3
    return latent, picture, loss


def as_pictures(patches):
    """Patch vectors `[B, N, p*p*3]` with the channel fastest as `[B, 3, H, W]`."""
    x = np.asarray(patches).reshape(-1, GRID, GRID, PATCH, PATCH, 3)
    return x.transpose(0, 5, 1, 3, 2, 4).reshape(-1, 3, GRID * PATCH, GRID * PATCH)


def test_simmim_end_to_end(tiny, images, tmp_path):
    objective, state = tiny("simmim", model=dict(drop_path=0.0)), simmim_state()
    wrapped = {"model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 799}
    variables = mim_jax.import_weights(objective, wrapped, "microsoft/SimMIM", strict=True)
    hidden = torch.zeros(3, TOKENS, dtype=torch.bool)
    hidden[0, [0, 1, 4, 5]] = hidden[1, [2, 3, 6, 7]] = hidden[2, [8, 9, 12, 13]] = True
    latent, picture, expected = simmim_reference(state, images, hidden)
    masks = mim_jax.TokenMask.from_bool(hidden.numpy())
    loss, aux = jax.jit(objective.loss)(variables, as_batch(images), masks, KEY, CLOCK)
    assert_equal(aux["latent"], latent)
    assert_equal(as_pictures(aux["prediction"]), picture)
    assert_equal(loss, expected)
    assert_round_trip(objective, variables, "microsoft/SimMIM", state, tmp_path)


def ijepa_state():
    width = 8
    target = random_state(encoder_shapes(), seed=9)
    predictor = {
        "mask_token": (1, 1, width),
        **linear_shapes("predictor_embed", width, WIDTH),
        **block_shapes("predictor_blocks.0", width),
        **norm_shapes("predictor_norm", width),
        **linear_shapes("predictor_proj", WIDTH, width),
    }
    positions = {"pos_embed": sincos(WIDTH, False)}
    return {
        "encoder": random_state(encoder_shapes()) | positions,
        "target_encoder": target | positions,
        "predictor": random_state(predictor) | {"predictor_pos_embed": sincos(width, False)},
    }


def ijepa_encode(state, images, ids=None):
    x = embed(state, images) + state["pos_embed"]
    return norm(state, "norm", blocks(state, "blocks", x if ids is None else gather(x, ids), HEADS))


def ijepa_reference(states, images, contexts, targets):
    """Prediction, target and loss of ijepa.md, steps 5 to 8."""
    target = F.layer_norm(ijepa_encode(states["target_encoder"], images), (WIDTH,))
    target = torch.cat([gather(target, ids) for ids in targets for _ in contexts])
    state = states["predictor"]
    positions = state["predictor_pos_embed"].expand(len(images), -1, -1)
    predictions = []
    for target_ids in targets:
        for context_ids in contexts:
            z = linear(state, "predictor_embed", ijepa_encode(states["encoder"], images, context_ids))
            queries = state["mask_token"] + gather(positions, target_ids)
            x = torch.cat([z + gather(positions, context_ids), queries], dim=1)
            x = norm(state, "predictor_norm", blocks(state, "predictor_blocks", x, 2))
            predictions.append(linear(state, "predictor_proj", x[:, -target_ids.shape[1] :]))
    prediction = torch.cat(predictions)
    return prediction, target, F.smooth_l1_loss(prediction, target)


def test_ijepa_end_to_end(tiny, images, tmp_path):
    objective, states = tiny("ijepa"), ijepa_state()
    wrapped = {part: {f"module.{name}": t for name, t in state.items()} for part, state in states.items()}
    source = {**wrapped, "epoch": 300, "opt": {"state": {0: torch.zeros(3)}}}
    variables = mim_jax.import_weights(objective, source, "facebookresearch/ijepa", strict=True)
    rng = np.random.default_rng(3)

    def ids(count):
        return torch.from_numpy(np.stack([rng.permutation(TOKENS)[:count] for _ in range(3)]))

    contexts, targets = [ids(5), ids(5)], [ids(3), ids(3), ids(3)]
    prediction, target, expected = ijepa_reference(states, images, contexts, targets)
    masks = BlockMasks(*(tuple(x.numpy().astype(np.int32) for x in group) for group in (contexts, targets)))
    loss, aux = jax.jit(objective.loss)(variables, as_batch(images), masks, KEY, CLOCK)
    assert_equal(aux["prediction"], prediction)
    assert_equal(aux["target"], target)
    assert_equal(loss, expected)
    flat = {f"{part}.{name}": tensor for part, state in states.items() for name, tensor in state.items()}
    assert_round_trip(objective, variables, "facebookresearch/ijepa", flat, tmp_path)
    again = mim_jax.import_weights(objective, flat, "facebookresearch/ijepa", strict=True)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize(("layout", "part"), [("", "target_encoder"), (":encoder", "encoder")])
def test_ijepa_downstream_takes_one_encoder(tiny, images, layout, part):
    model = dict(class_token=False, pool="mean", position="sincos")
    objective, states = tiny("mae", model=model), ijepa_state()
    with pytest.warns(mim_jax.interop.WeightsWarning) as record:
        variables = mim_jax.import_weights(objective, states, f"facebookresearch/ijepa{layout}")
    assert "params/decoder is not in the source: left random" in str(record[0].message)
    assert len(record) == 3  # and: the other encoder is not used, there is no predictor
    assert_equal(
        jax.jit(objective.encode)(variables, as_batch(images)["image"])["tokens"], ijepa_encode(states[part], images)
    )


def test_timm_vit_with_layer_scale(tiny, images, tmp_path):
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + TOKENS, WIDTH), **encoder_shapes()}
    for layer in range(DEPTH):
        shapes |= {f"blocks.{layer}.ls1.gamma": (WIDTH,), f"blocks.{layer}.ls2.gamma": (WIDTH,)}
    state = random_state(shapes | linear_shapes("head", 5, WIDTH))
    model = dict(pool="class", position="learned", layer_scale=1e-5)
    objective = tiny("classification", model=model)
    variables = mim_jax.import_weights(objective, state, "timm/vit", strict=True)
    x = norm(
        state,
        "norm",
        blocks(state, "blocks", with_class_token(state, embed(state, images)) + state["pos_embed"], HEADS),
    )
    features = jax.jit(objective.encode)(variables, as_batch(images)["image"])
    assert_equal(features["tokens"], x[:, 1:])
    assert_equal(jax.jit(objective.predict)(variables, as_batch(images)["image"]), linear(state, "head", x[:, 0]))
    assert_round_trip(objective, variables, "timm/vit", state, tmp_path)
