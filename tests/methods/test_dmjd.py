import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.masking.disjoint_cells import DisjointViews
from mim_jax.masking.token_mask import TokenMask
from mim_jax.normalization import normalize_pixels
from tests.methods import conv_vit_peer as peer
from tests.tiny import ROOT, clock, synthetic_batch

CONV = dict(
    method="dmjd",
    image_size=48,
    model=peer.MODEL,
    decoder=dict(width=peer.DECODER_WIDTH, depth=1, heads=peer.DECODER_HEADS),
    mask_patch_size=16,
    hog=dict(cell_size=4),
)
PLAIN = {**CONV, "model": dict(backbone="vit", patch_size=8, width=16, depth=1, heads=2)}
LAYOUT = "mx-mark/DMJD"
KEY = jax.random.key(0)
HEAD = 2 * 2 * 9 * 3  # numbers predicted for each patch


def projector_shapes():
    shapes = {}
    for layer, (outputs, inputs) in {0: (8, 16), 3: (8, 8), 6: (8, 8)}.items():
        shapes |= {f"proj_embed.{layer}.weight": (outputs, inputs), f"proj_embed.{layer}.bias": (outputs,)}
    for layer in (1, 4):
        shapes |= {f"proj_embed.{layer}.weight": (8,), f"proj_embed.{layer}.bias": (8,)}
    return shapes | {"predictor.0.weight": (HEAD, 8), "predictor.0.bias": (HEAD,)}


@pytest.fixture(scope="module")
def state():
    shapes = {**peer.encoder_shapes(), **peer.decoder_shapes(HEAD, ratio=8), **projector_shapes()}
    state = peer.random_state(shapes)
    for layer in (1, 4):  # norms, though not called so
        state[f"proj_embed.{layer}.weight"] += 1.0
    return state | peer.tables()


@pytest.fixture(scope="module")
def raw():
    """8-bit images `[B, H, W, 3]` with flat areas."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    images[0, 10:30, :20] = 77
    return images


@pytest.fixture(scope="module")
def batch(raw):
    mean, std = (np.float32(values) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    image = np.empty(raw.shape, np.float32)
    normalize_pixels(raw, mean, std, image)
    return {"image": image}


@pytest.fixture(scope="module")
def draws():
    """What the official code draws: noise over 9 cells, and permutations of the 3 visible and the 6 hidden ones."""
    generator = torch.Generator().manual_seed(4)
    noise = torch.rand(3, 9, generator=generator)
    return noise, torch.randperm(3, generator=generator), torch.randperm(6, generator=generator)


@pytest.fixture(scope="module")
def conv():
    return mim_jax.create(CONV)


@pytest.fixture(scope="module")
def variables(conv, state):
    return mim_jax.import_weights(conv, {"model": state}, LAYOUT, strict=True)


def masks_from(objective, draws):
    return objective.sampler.from_draws(*(jnp.asarray(values.numpy()) for values in draws))


def reference_views(draws):
    """Block masking of dmjd.md for 3x3 cells of 2x2 patches: ids_keep, mask and ids_restore of both views."""
    noise, shuffle_disj, shuffle_joint = draws
    keep, extra, hidden = 3, 3, 6
    order = noise.argsort(dim=1)
    disj, joint = order[:, :keep], order[:, keep:]
    again = hidden - extra
    second = [
        disj[:, shuffle_disj[extra:]],
        joint[:, shuffle_joint[again:]],
        disj[:, shuffle_disj[:extra]],
        joint[:, shuffle_joint[:again]],
    ]
    shuffled = []
    for cells in (order, torch.cat(second, dim=1)):
        row, column = 2 * (cells // 3), 2 * (cells % 3)
        four = [(row + a) * 6 + column + b for a in (0, 1) for b in (0, 1)]
        shuffled.append(torch.cat([f[:, :keep] for f in four] + [f[:, keep:] for f in four], dim=1))
    ids_shuffle = torch.cat(shuffled)
    ids_restore = ids_shuffle.argsort(dim=1)
    return ids_shuffle[:, : 4 * keep], (ids_restore >= 4 * keep).float(), ids_restore


def reference_hog(raw):
    """HOG of dmjd.md: hard bins by angle, cells of 4 pixels, whitened, `[B, N, (dh dw bin channel)]`."""
    x = torch.from_numpy(raw).permute(0, 3, 1, 2).float()
    g_row, g_col = torch.zeros_like(x), torch.zeros_like(x)
    g_row[:, :, 1:-1] = x[:, :, 2:] - x[:, :, :-2]
    g_col[:, :, :, 1:-1] = x[:, :, :, 2:] - x[:, :, :, :-2]
    bins = torch.div(torch.rad2deg(torch.arctan2(g_row, g_col)) % 180, 20.0, rounding_mode="floor")
    weights = torch.hypot(g_row, g_col)[..., None] * (bins[..., None] == torch.arange(9.0))
    histograms = weights.view(*x.shape[:2], 12, 4, 12, 4, 9).sum((3, 5)) / 16
    whitened = F.layer_norm(histograms, (9,))
    cells = whitened.view(*x.shape[:2], 6, 2, 6, 2, 9)  # B, C, row, dh, column, dw, bin
    return cells.permute(0, 2, 4, 3, 5, 6, 1).reshape(len(x), 36, -1)


def reference(state, batch, raw, draws, order):
    """Latent, both predictions and both losses of dmjd.md, first views first."""
    ids_keep, mask, ids_restore = reference_views(draws)
    images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
    latent = peer.encode(state, images, mask, ids_keep, views=2)
    prediction = peer.decode(state, latent, ids_restore)
    x = latent
    for layer in (0, 3):
        x = F.gelu(peer.norm(state, f"proj_embed.{layer + 1}", peer.linear(state, f"proj_embed.{layer}", x)))
    x = F.layer_norm(peer.linear(state, "proj_embed.6", x), (8,), eps=1e-6)
    visible = peer.linear(state, "predictor.0", x)
    target = torch.cat([reference_hog(raw)] * 2)
    targets = {"raster": target[mask == 0].view(*visible.shape), "kept": peer.gather(target, ids_keep)}
    vis = F.smooth_l1_loss(visible, targets[order], beta=2.0)
    mim = ((prediction - target).square().mean(-1) * mask).sum() / mask.sum()
    return dict(latent=latent, prediction=prediction, visible_prediction=visible, target=target), mim, vis


@pytest.mark.parametrize("order", ["raster", "kept"])
def test_equals_the_official_computation(order, variables, state, batch, raw, draws):
    objective = mim_jax.create({**CONV, "visible_order": order})
    loss, aux = jax.jit(objective.loss)(variables, batch, masks_from(objective, draws), KEY, clock())
    expected, mim, vis = reference(state, batch, raw, draws, order)
    for name, value in expected.items():
        peer.assert_equal(aux[name], value)
    peer.assert_equal(aux["terms"]["mim"], mim)
    peer.assert_equal(aux["terms"]["vis"], vis)
    peer.assert_equal(loss, mim + vis)


def test_every_gradient_is_the_official_one(conv, variables, state, batch, raw, draws, tmp_path):
    leaves = {name: value.clone().requires_grad_("pos_embed" not in name) for name, value in state.items()}
    _, mim, vis = reference(leaves, batch, raw, draws, "raster")
    (mim + vis).backward()
    masks = masks_from(conv, draws)
    gradients = jax.jit(jax.grad(lambda params: conv.loss({"params": params}, batch, masks, KEY, clock())[0]))(
        variables["params"]
    )
    exported = load_file(mim_jax.export_weights(conv, {"params": gradients}, tmp_path, LAYOUT))
    assert exported.keys() == state.keys()
    for name, leaf in leaves.items():
        if leaf.grad is None:
            continue
        # Of key biases the gradient is zero but for rounding: softmax does not see them.
        tolerance = 2e-5 * leaf.grad.abs().max().item() + 1e-6
        np.testing.assert_allclose(exported[name], leaf.grad.numpy(), rtol=0, atol=tolerance, err_msg=name)


def test_the_checkpoint_goes_out_as_it_came_in(conv, variables, state, tmp_path):
    exported = load_file(mim_jax.export_weights(conv, variables, tmp_path, LAYOUT))
    assert exported.keys() == state.keys()
    for name, tensor in state.items():
        atol = 1e-6 if name.endswith("pos_embed") else 0.0
        np.testing.assert_allclose(exported[name], tensor.numpy(), rtol=0, atol=atol, err_msg=name)


def test_the_views_hide_every_patch_and_share_no_visible_one(conv, batch):
    views = jax.jit(conv.masks)({}, batch, jax.random.key(2), clock())
    first, second = np.asarray(views.first.mask), np.asarray(views.second.mask)
    assert (first | second).all()
    assert (first.sum(axis=1) == 24).all() and (second.sum(axis=1) == 24).all()
    assert ((first & second).sum(axis=1) == 12).all()


def test_latents_do_not_depend_on_hidden_pixels(conv, variables, batch, draws):
    views = masks_from(conv, draws)
    noise = np.random.default_rng(0).normal(size=batch["image"].shape).astype(np.float32)
    hidden = np.asarray(views.first.mask).reshape(3, 6, 6).repeat(8, axis=1).repeat(8, axis=2)[..., None]
    loss = jax.jit(conv.loss)
    _, aux = loss(variables, batch, views, KEY, clock())
    _, changed = loss(variables, {"image": np.where(hidden, noise, batch["image"])}, views, KEY, clock())
    np.testing.assert_array_equal(aux["latent"][:3], changed["latent"][:3])
    assert not np.allclose(aux["latent"][3:], changed["latent"][3:])


@pytest.fixture(scope="module")
def plain():
    return mim_jax.create(PLAIN)


@pytest.fixture(scope="module")
def plain_case(plain):
    batch = synthetic_batch(plain, 2)
    variables = jax.jit(lambda: plain.init(jax.random.key(0), batch))()
    return variables, batch, plain.masks(variables, batch, jax.random.key(1), clock())


def test_a_plain_vit_encodes_each_view_by_itself(plain, plain_case):
    variables, batch, masks = plain_case
    _, aux = jax.jit(plain.loss)(variables, batch, masks, KEY, clock())
    encoder = {"params": variables["params"]["encoder"]}
    encode = jax.jit(lambda ids: plain.encoder.apply(encoder, batch["image"], ids_keep=ids))
    for view, mask in enumerate(masks):
        latent = encode(mask.ids_keep)
        np.testing.assert_allclose(aux["latent"].reshape(2, *latent.shape)[view], latent, atol=1e-5)


def test_the_terms_are_what_their_names_say(plain, plain_case):
    variables, batch, masks = plain_case
    objective = mim_jax.create({**PLAIN, "visible_weight": 3.0, "visible_order": "kept", "mim_loss": "smooth_l1"})
    loss, aux = jax.jit(objective.loss)(variables, batch, masks, KEY, clock())
    mask = np.concatenate([masks.first.mask, masks.second.mask])
    target = np.asarray(aux["target"])

    def smooth_l1(difference):
        size = np.abs(difference)
        return np.where(size < 2.0, size**2 / 4.0, size - 1.0)

    mim = smooth_l1(np.asarray(aux["prediction"]) - target)[mask].mean()
    ids = np.concatenate([masks.first.ids_keep, masks.second.ids_keep])
    own = np.take_along_axis(target, ids[:, :, None], axis=1)
    vis = smooth_l1(np.asarray(aux["visible_prediction"]) - own).mean()
    np.testing.assert_allclose([aux["terms"]["mim"], aux["terms"]["vis"]], [mim, vis], rtol=1e-5)
    np.testing.assert_allclose(loss, mim + 3.0 * vis, rtol=1e-5)


def test_without_weight_the_projector_gets_no_gradient(plain_case):
    variables, batch, masks = plain_case
    objective = mim_jax.create({**PLAIN, "visible_weight": 0.0})
    gradient = jax.jit(jax.grad(lambda params: objective.loss({"params": params}, batch, masks, KEY, clock())[0]))
    gradients = gradient(variables["params"])
    assert all(not np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["projector"]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_one_view_twice_is_one_view(plain, plain_case):
    variables, batch, masks = plain_case
    mask = TokenMask.from_bool(masks.first.mask)
    _, aux = jax.jit(plain.loss)(variables, batch, DisjointViews(mask, mask), KEY, clock())
    np.testing.assert_array_equal(aux["prediction"][:2], aux["prediction"][2:])
    error = np.square(np.asarray(aux["prediction"] - aux["target"])).mean(axis=-1)[:2][np.asarray(mask.mask)]
    np.testing.assert_allclose(aux["terms"]["mim"], error.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "encoder", "total"),
    [("b", 92_345_728, 135_885_912), ("l", 331_391_616, 375_193_944)],
)
def test_parameter_counts_are_the_sheets(name, encoder, total):
    objective = mim_jax.create(mim_jax.load_config(str(ROOT / "configs" / f"dmjd_conv_vit_{name}_in1k.py")))
    params = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())["params"]
    counts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    tables = [196 * objective.encoder.width, 196 * objective.decoder.width]  # constants here, no parameters
    assert counts["encoder"] + tables[0] == encoder
    assert sum(counts.values()) + sum(tables) == total


def test_a_decoder_of_two_blocks_has_the_sheets_count():
    objective = mim_jax.create(dict(method="dmjd", decoder=dict(depth=2)))
    params = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) + 196 * (768 + 512) == 104_376_408


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mim_loss": "l1"}, "mim_loss"),
        ({"visible_order": "rank"}, "visible_order"),
        ({"hog": {"cell_size": 3}}, r"hog\.cell_size 3"),
        ({"mask_patch_size": 12}, "mask_patch_size"),
        ({"prediction_ratio": 0.5}, "prediction_ratio"),
        ({"mask_ratio": 0.0}, "mask_ratio"),
        ({"model": {"backbone": "swin"}}, r"model\.backbone"),
        ({"decoder": {"width": 8, "heads": 3}}, r"decoder\.width 8"),
    ],
)
def test_bad_values_are_refused_before_any_computation(change, match):
    with pytest.raises(ConfigError, match=match):
        mim_jax.create({**CONV, **change})
