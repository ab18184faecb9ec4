"""DMT-JEPA: parity with a PyTorch forward written from dmt_jepa.md, and the sheet's checks."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file

import mim_jax
from mim_jax.masking.multiblock import BlockMasks
from mim_jax.models.joint_embedding import take_blocks
from tests.interop import test_official_layouts as official
from tests.tiny import ROOT, clock, synthetic_batch

LAYOUT = "DMTJEPA/DMTJEPA"
# With 3 images, of which 16 leaves 1, patch and image could stand for one another in the official order.
BATCH, WIDTH, GRID = 7, official.WIDTH, official.GRID
TINY = dict(
    method="dmt_jepa",
    image_size=16,
    model=dict(width=16, depth=2, heads=4, patch_size=4),
    predictor=dict(width=8, depth=1, heads=2),
    blocks=dict(context_share=0.25),
)
KEY = jax.random.key(0)


def head_state(seed):
    """A random head with the official names."""
    shapes = official.norm_shapes("norm", WIDTH)
    for layer in range(2):
        block = f"cls_blocks.{layer}"
        shapes |= {**official.norm_shapes(f"{block}.norm1", WIDTH), **official.norm_shapes(f"{block}.norm2", WIDTH)}
        for name in ("q", "k", "v", "proj"):
            shapes |= official.linear_shapes(f"{block}.attn.{name}", WIDTH, WIDTH)
        shapes |= official.linear_shapes(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH)
        shapes |= official.linear_shapes(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
    return official.random_state(shapes, seed)


def attention(state, name, query, tokens):
    """`[M, Q, D]` from `[M, Q, D]` and `[M, K, D]`."""
    q, k, v = (
        official.linear(state, f"{name}.{which}", x).unflatten(-1, (official.HEADS, -1)).transpose(1, 2)
        for which, x in (("q", query), ("k", tokens), ("v", tokens))
    )
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return official.linear(state, f"{name}.proj", (weights @ v).transpose(1, 2).flatten(2))


def mlp(state, name, x):
    return official.linear(state, f"{name}.fc2", F.gelu(official.linear(state, f"{name}.fc1", x)))


def target_head(state, query, neighbors, kind):
    """Steps 5 and 6: `[M, 1, D]`."""
    for layer in range(2):
        block = f"cls_blocks.{layer}"
        tokens = official.norm(state, f"{block}.norm1", torch.cat([query, neighbors], dim=1))
        asks = tokens if kind == "self-attn" else tokens[:, :1]
        query = query + attention(state, f"{block}.attn", asks, tokens)[:, :1]
        query = query + mlp(state, f"{block}.mlp", official.norm(state, f"{block}.norm2", query))
    return official.norm(state, "norm", query)


def context_head(state, z, kind):
    """Step 7: `[B, K, D]`."""
    for layer in range(2):
        block = f"cls_blocks.{layer}"
        if kind == "self-attn":
            tokens = official.norm(state, f"{block}.norm1", z)
            z = z + attention(state, f"{block}.attn", tokens, tokens)
        else:
            tokens = official.norm(state, f"{block}.norm1", torch.cat([z.mean(dim=1, keepdim=True), z], dim=1))
            z = z + attention(state, f"{block}.attn", tokens[:, :1], tokens)
        z = z + mlp(state, f"{block}.mlp", official.norm(state, f"{block}.norm2", z))
    return official.norm(state, "norm", z)


def neighbor_lists():
    """Step 2."""
    lists = []
    for row in range(GRID):
        for column in range(GRID):
            cells = {((row + y) % GRID) * GRID + (column + x) % GRID for y in (-1, 0, 1) for x in (-1, 0, 1)}
            lists.append(sorted(cells - {row * GRID + column}))
    return torch.tensor(lists)


def all_targets(states, images, mode="official", kind="cross-attn"):
    """Steps 1 to 6 for all patches of a batch, in the official order of rows: `[B, N, D]`."""
    h = F.layer_norm(official.ijepa_encode(states["target_encoder"], images), (WIDTH,))
    batch, count, _ = h.shape
    unit = F.normalize(h, dim=-1)
    around = neighbor_lists()
    top = (unit[:, :, None] * unit[:, around]).sum(dim=-1).topk(4, dim=-1).indices
    ids = around[None].expand(batch, -1, -1).gather(2, top)
    x_loc = torch.stack([row[i] for row, i in zip(h, ids, strict=True)]).flatten(0, 1)  # [B*N, 4, D]
    mean = h.mean(dim=1, keepdim=True)
    query = mean.repeat(count, 1, 1) if mode == "official" else mean.repeat_interleave(count, dim=0)
    return target_head(states["target_head"], query, x_loc, kind).view(batch, count, WIDTH)


def reference(states, images, contexts, targets, mode, context_kind="cross-attn", target_kind="cross-attn"):
    """Prediction, target and loss of dmt_jepa.md."""
    full = all_targets(states, images, mode, target_kind).detach()
    target = torch.cat([official.gather(full, ids) for ids in targets for _ in contexts])
    state = states["predictor"]
    positions = state["predictor_pos_embed"].expand(len(images), -1, -1)
    predictions = []
    for target_ids in targets:
        for context_ids in contexts:
            z = official.ijepa_encode(states["encoder"], images, context_ids)
            z = official.linear(state, "predictor_embed", context_head(states["head"], z, context_kind))
            queries = state["mask_token"] + official.gather(positions, target_ids)
            x = torch.cat([z + official.gather(positions, context_ids), queries], dim=1)
            x = official.norm(state, "predictor_norm", official.blocks(state, "predictor_blocks", x, 2))
            predictions.append(official.linear(state, "predictor_proj", x[:, -target_ids.shape[1] :]))
    prediction = torch.cat(predictions)
    return prediction, target, F.smooth_l1_loss(prediction, target)


@pytest.fixture(scope="module")
def states():
    return official.ijepa_state() | {"head": head_state(3), "target_head": head_state(4)}


@pytest.fixture(scope="module")
def images():
    return torch.randn(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def ids():
    """Two contexts and three target blocks."""
    rng = np.random.default_rng(3)

    def draw(count):
        return torch.from_numpy(np.stack([rng.permutation(GRID * GRID)[:count] for _ in range(BATCH)]))

    return [draw(5), draw(5)], [draw(4), draw(4), draw(4)]


@pytest.fixture(scope="module")
def masks(ids):
    return BlockMasks(*(tuple(x.numpy().astype(np.int32) for x in group) for group in ids))


@pytest.fixture(scope="module")
def dmt():
    return mim_jax.create(TINY)


@pytest.fixture(scope="module")
def variables(dmt, states):
    wrapped = {part: {f"module.{name}": t for name, t in state.items()} for part, state in states.items()}
    source = {**wrapped, "epoch": 600, "opt": {"state": {0: torch.zeros(3)}}}
    return mim_jax.import_weights(dmt, source, LAYOUT, strict=True)


@pytest.mark.parametrize(
    "head",
    [
        dict(query_image="own"),
        dict(query_image="official"),
        dict(query_image="official", context_attn="self-attn", target_attn="self-attn"),
    ],
    ids=["own", "official", "self-attn"],
)
def test_loss_equals_the_official_one(variables, states, images, ids, masks, head):
    objective = mim_jax.create({**TINY, "head": head})
    kinds = [head.get(f"{side}_attn", "cross-attn") for side in ("context", "target")]
    prediction, target, expected = reference(states, images, *ids, head["query_image"], *kinds)
    value, aux = jax.jit(objective.loss)(variables, official.as_batch(images), masks, None, clock())
    official.assert_equal(aux["target"], target)
    official.assert_equal(aux["prediction"], prediction)
    official.assert_equal(value, expected)
    assert set(aux["terms"]) == {"prediction"}


def test_one_image_at_a_time_both_modes_agree(variables, states, images, masks):
    """Which the official code does not do for a batch: its targets then tell of other images."""
    official_mode = mim_jax.create({**TINY, "head": dict(query_image="official")})
    one = jax.tree.map(lambda x: x[:1], masks)
    image = official.as_batch(images[:1])
    target = jax.jit(official_mode.loss)(variables, image, one, None, clock())[1]["target"]
    full = all_targets(states, images[:1])
    expected = torch.cat([official.gather(full, torch.from_numpy(np.array(block)).long()) for block in one.targets])
    official.assert_equal(target[::2], expected)
    assert (all_targets(states, images)[:1] - full).abs().max() > 0.1


@pytest.mark.parametrize(("mode", "follows"), [("own", True), ("official", False)])
def test_a_permuted_batch_permutes_own_targets_only(variables, images, masks, mode, follows):
    objective = mim_jax.create({**TINY, "head": dict(query_image=mode)})
    order = np.array([1, 0, *range(2, BATCH)])
    run = jax.jit(lambda b, m: objective.loss(variables, b, m, None, clock())[1]["target"])
    batch = official.as_batch(images)
    target = run(batch, masks).reshape(3, 2, BATCH, 4, WIDTH)
    permuted = run(*jax.tree.map(lambda x: x[order], (batch, masks))).reshape(3, 2, BATCH, 4, WIDTH)
    assert np.allclose(permuted, target[:, :, order], atol=1e-5) == follows


def test_gradients_reach_the_heads_student_only(dmt, variables, images, masks):
    def value(variables):
        return dmt.loss(variables, official.as_batch(images), masks, None, clock())[0]

    gradients = jax.jit(jax.grad(value))(variables)
    assert not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["teacher"]))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["params"]))


def test_every_gradient_is_pytorchs(dmt, variables, states, images, ids, masks, tmp_path):
    trained = {
        part: {name: t.clone().requires_grad_("pos_embed" not in name) for name, t in state.items()}
        for part, state in states.items()
    }
    reference(trained, images, *ids, "own")[2].backward()

    def value(params):
        return dmt.loss({**variables, "params": params}, official.as_batch(images), masks, None, clock())[0]

    gradients = {**variables, "params": jax.jit(jax.grad(value))(variables["params"])}
    # The rules that carry weights out carry gradients too.
    ours = load_file(mim_jax.export_weights(dmt, gradients, tmp_path, LAYOUT))
    for part in ("encoder", "predictor", "head"):
        scale = max(t.grad.abs().max().item() for t in trained[part].values() if t.requires_grad)
        for name, t in trained[part].items():
            if t.requires_grad:
                theirs = t.grad.numpy()
                np.testing.assert_allclose(ours[f"{part}.{name}"], theirs, rtol=1e-4, atol=1e-5 * scale, err_msg=name)


def test_with_identities_for_heads_it_is_ijepa(dmt, variables, images, masks, monkeypatch):
    ijepa = mim_jax.create({**{k: v for k, v in TINY.items() if k != "method"}, "method": "ijepa"})
    expected, aux = jax.jit(ijepa.loss)(variables, official.as_batch(images), masks, None, clock())
    monkeypatch.setattr(dmt, "head", types.SimpleNamespace(apply=lambda params, x: x))
    monkeypatch.setattr(dmt, "_aggregate", lambda variables, latent, ids: take_blocks(latent, ids))
    value, own = jax.jit(dmt.loss)(variables, official.as_batch(images), masks, None, clock())
    assert float(value) == float(expected)
    np.testing.assert_array_equal(own["prediction"], aux["prediction"])


def test_of_equal_tokens_the_targets_are_equal(dmt, variables, masks):
    latent = jnp.broadcast_to(jax.random.normal(KEY, (BATCH, 1, WIDTH)), (BATCH, GRID * GRID, WIDTH))
    targets = dmt._aggregate(variables, latent, masks.targets)
    expected = jnp.broadcast_to(targets[:1, :, :1], targets.shape)
    np.testing.assert_allclose(targets, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(targets[:, 0] - targets[:, 1]).max() > 1e-2


def test_a_patch_only_chooses_its_neighbors(dmt, variables, monkeypatch):
    """A longer feature, asked by the same means, changes the targets of patches around it and not its own."""
    latent = jax.random.normal(KEY, (BATCH, GRID * GRID, WIDTH))
    everywhere = (jnp.broadcast_to(jnp.arange(16, dtype=jnp.int32)[None], (BATCH, 16)),)
    query = dmt._queries(latent.mean(axis=1), everywhere[0])
    monkeypatch.setattr(dmt, "_queries", lambda means, patches: query)
    before, after = (dmt._aggregate(variables, x, everywhere)[0] for x in (latent, latent.at[:, 5].multiply(2.0)))
    changed = np.flatnonzero(np.abs(after - before).max(axis=(0, 2)) > 1e-6)
    assert changed.size and set(changed) <= set(dmt.table[5].tolist())


def test_targets_are_made_for_target_patches_alone(dmt, variables, images, masks):
    """The head is applied to as many tokens as are asked for."""
    shapes = []
    head = types.SimpleNamespace(apply=lambda params, x, *more: shapes.append([x.shape, *(m.shape for m in more)]) or x)
    probe = mim_jax.create(TINY)
    probe.head = head
    jax.eval_shape(lambda v: probe.loss(v, official.as_batch(images), masks, None, clock())[0], variables)
    assert shapes == [[(BATCH * 12, 1, WIDTH), (BATCH * 12, 4, WIDTH)], [(2 * BATCH, 5, WIDTH)]]


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.996), (4, 0.998), (8, 1.0)])
def test_encoder_and_head_are_followed_alike(dmt, variables, step, momentum):
    updated = jax.jit(dmt.update)(variables, clock(step, 8))["teacher"]
    student = {name: variables["params"][name] for name in ("encoder", "head")}
    expected = jax.tree.map(lambda t, p: momentum * t + (1 - momentum) * p, variables["teacher"], student)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), updated, expected)


def test_the_teacher_starts_as_a_copy_and_the_rest_as_ijepas(dmt):
    batch = synthetic_batch(dmt, 2)
    variables = jax.jit(lambda: dmt.init(KEY, batch))()
    for name in ("encoder", "head"):
        jax.tree.map(np.testing.assert_array_equal, variables["teacher"][name], variables["params"][name])
    ijepa = mim_jax.create({**TINY, "method": "ijepa"})
    same = jax.jit(lambda: ijepa.init(KEY, batch))()
    for name in ("encoder", "predictor"):
        jax.tree.map(np.testing.assert_array_equal, variables["params"][name], same["params"][name])
    kernels = variables["params"]["head"]["stack"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert float(kernels.std()) == pytest.approx(0.02, rel=0.1)


def test_any_grid_of_three_by_three_and_more_will_do():
    config = {**TINY, "image_size": (12, 20), "blocks": dict(context_share=0.2)}
    objective = mim_jax.create(config)
    batch = objective.batch_spec(4)
    variables = jax.eval_shape(objective.init, KEY, batch)

    def loss(variables, batch):
        return objective.loss(variables, batch, objective.masks(variables, batch, KEY, clock()), KEY, clock())[0]

    assert jax.eval_shape(loss, variables, batch).shape == ()


def test_files_round_trip(dmt, variables, states, tmp_path):
    flat = {f"{part}.{name}": tensor for part, state in states.items() for name, tensor in state.items()}
    official.assert_round_trip(dmt, variables, LAYOUT, flat, tmp_path)


def test_official_files_have_no_head(dmt, states):
    """It is initialised, and its EMA copy starts equal, as when the official code resumes."""
    source = {part: states[part] for part in ("encoder", "predictor", "target_encoder")}
    with pytest.warns(mim_jax.interop.WeightsWarning, match="head is not in the source: left random"):
        variables = mim_jax.import_weights(dmt, source, LAYOUT)
    jax.tree.map(np.testing.assert_array_equal, variables["teacher"]["head"], variables["params"]["head"])


@pytest.mark.parametrize(("variant", "part"), [("", "target_encoder"), (":encoder", "encoder")])
def test_downstream_takes_one_encoder(states, images, variant, part):
    model = dict(**TINY["model"], class_token=False, pool="mean")
    decoder = dict(width=8, depth=1, heads=2)
    objective = mim_jax.create(dict(method="mae", image_size=16, model=model, decoder=decoder))
    with pytest.warns(mim_jax.interop.WeightsWarning):
        variables = mim_jax.import_weights(objective, states, LAYOUT + variant)
    tokens = objective.encode(variables, official.as_batch(images)["image"])["tokens"]
    official.assert_equal(tokens, official.ijepa_encode(states[part], images))


def test_parameter_counts_are_the_sheets():
    objective = mim_jax.create(mim_jax.load_config(str(ROOT / "configs" / "dmt_jepa_vit_b16_in1k.py")))
    variables = jax.eval_shape(objective.init, KEY, objective.batch_spec())
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in variables["params"].items()}
    assert count == {"encoder": 85_646_592, "predictor": 11_238_912, "head": 14_177_280}
    teacher = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in variables["teacher"].items()}
    assert teacher == {"encoder": 85_646_592, "head": 14_177_280}


def test_the_recipe_is_ijepas_but_for_the_context():
    """The official one has twice as many images a device, so that fewer context tokens are left."""
    dmt, ijepa = (
        mim_jax.load_config(str(ROOT / "configs" / f"{method}_vit_b16_in1k.py")).to_dict()
        for method in ("dmt_jepa", "ijepa")
    )
    assert dmt.pop("head") and dmt["blocks"].pop("context_share") < ijepa["blocks"].pop("context_share")
    assert {key for key in dmt if dmt[key] != ijepa[key]} == {"method"}
