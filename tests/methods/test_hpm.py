"""HPM: parity with a PyTorch forward written from hpm.md, and the sheet's checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import mim_jax
from mim_jax import TokenMask
from mim_jax.errors import ConfigError
from tests.interop import test_official_layouts as official
from tests.tiny import ROOT, clock, synthetic_batch

LAYOUT = "Haochen-Wang409/HPM"
TINY = dict(
    method="hpm",
    image_size=16,
    model=dict(width=16, depth=2, heads=4, patch_size=4),
    decoder=dict(width=8, depth=1, heads=2),
)
KEY = jax.random.key(0)


def official_state(seed):
    """A random student or EMA copy with the official names."""
    state = official.mae_state()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if "pos_embed" not in name}
    for name in list(shapes):
        for part in ("decoder_blocks", "decoder_norm", "decoder_pred"):
            if name.startswith(f"{part}."):
                shapes[name.replace(part, f"{part}_losspred")] = shapes[name]
    tables = {name: tensor for name, tensor in state.items() if "pos_embed" in name}
    return official.random_state(shapes, seed) | tables


def forward(state, images, hidden):
    """Predictions and scores of hpm.md, steps 3 and 4, in the order [visible, hidden] of the official sequences."""

    def pick(x, mask):
        return x[mask].reshape(len(images), -1, x.shape[-1])

    x = pick(official.embed(state, images) + state["pos_embed"][:, 1:], ~hidden)
    x = official.with_class_token(state, x)
    latent = official.norm(state, "norm", official.blocks(state, "blocks", x, 4))
    y = official.linear(state, "decoder_embed", latent)
    positions = state["decoder_pos_embed"][:, 1:].expand(len(images), -1, -1)
    tokens = [y[:, :1], y[:, 1:] + pick(positions, ~hidden), state["mask_token"] + pick(positions, hidden)]
    sequence = torch.cat(tokens, dim=1)

    def decode(suffix):
        z = official.norm(
            state, f"decoder_norm{suffix}", official.blocks(state, f"decoder_blocks{suffix}", sequence, 2)
        )
        return official.linear(state, f"decoder_pred{suffix}", z)[:, 1:]

    return decode(""), decode("_losspred").mean(dim=-1)


def official_losses(state, images, hidden, relative):
    """Steps 5 and 6."""
    prediction, score = forward(state, images, hidden)
    count = int(hidden[0].sum())
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(len(images), 16, -1)
    target = patches[hidden].reshape(len(images), count, -1)
    error = (prediction[:, -count:] - target).square().mean(-1)
    score, t = score[:, -count:], error.detach()
    if not relative:
        t = (t - t.mean(1, keepdim=True)) / (t.var(1, keepdim=True) + 1e-6).sqrt()
        return error.mean(), (score - t).square().mean()
    positive, negative = t.unsqueeze(1) > t.unsqueeze(2), t.unsqueeze(1) < t.unsqueeze(2)
    probability = torch.sigmoid(score.unsqueeze(1) - score.unsqueeze(2))
    pairs = -positive.int() * torch.log(probability + 1e-6) - negative.int() * torch.log(1 - probability + 1e-6)
    return error.mean(), pairs.sum() / (positive | negative).sum()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def states():
    return official_state(0), official_state(7)


@pytest.fixture(scope="module")
def checkpoint(states):
    student, ema = states
    wrapped = {f"module.{name}": tensor for name, tensor in student.items()}
    return {"epoch": 799, "state_dict": wrapped, "model": "mae_vit_base_patch16_dec512d8b", "ema_state_dict": ema}


@pytest.fixture(scope="module")
def hpm():
    return mim_jax.create(TINY)


@pytest.fixture(scope="module")
def variables(hpm, checkpoint):
    return mim_jax.import_weights(hpm, checkpoint, LAYOUT, strict=True)


@pytest.fixture(scope="module")
def masks():
    return TokenMask.from_noise(jax.random.uniform(jax.random.key(3), (3, 16)), 4)


@pytest.fixture(scope="module")
def gradients(hpm, variables, images, masks):
    """Of each term by itself, with respect to params and teacher."""

    def terms(trained):
        return hpm.loss({**variables, **trained}, official.as_batch(images), masks, KEY, clock())[1]["terms"]

    return jax.jit(jax.jacrev(terms))(variables)


@pytest.mark.parametrize("relative", [True, False])
def test_loss_equals_the_official_one(hpm, variables, states, images, masks, relative):
    objective = hpm if relative else mim_jax.create({**TINY, "loss_objective": "absolute"})
    loss, aux = jax.jit(objective.loss)(variables, official.as_batch(images), masks, KEY, clock())
    hidden = torch.from_numpy(np.array(masks.mask))
    prediction, score = forward(states[0], images, hidden)
    raster = np.argsort(np.argsort(hidden.numpy(), axis=1, kind="stable"), axis=1)
    official.assert_equal(np.take_along_axis(aux["score"], np.argsort(raster, axis=1), axis=1), score)
    official.assert_equal(
        np.take_along_axis(aux["prediction"], np.argsort(raster, axis=1)[:, :, None], axis=1), prediction
    )
    reconstruction, loss_prediction = official_losses(states[0], images, hidden, relative)
    official.assert_equal(aux["terms"]["reconstruction"], reconstruction)
    official.assert_equal(aux["terms"]["loss_prediction"], loss_prediction)
    official.assert_equal(loss, reconstruction + loss_prediction)


def test_the_teachers_scores_are_the_official_ema_copys(hpm, variables, states, images):
    _, expected = forward(states[1], images, torch.zeros(3, 16, dtype=torch.bool))
    official.assert_equal(jax.jit(hpm.scores)(variables, official.as_batch(images)["image"]), expected)


def test_masks_hide_what_the_teacher_finds_hardest(hpm, variables, states, images):
    _, scores = forward(states[1], images, torch.zeros(3, 16, dtype=torch.bool))
    last = mim_jax.Clock.at(799, total_steps=800, steps_per_epoch=1.0)
    masks = jax.jit(hpm.masks)(variables, official.as_batch(images), KEY, last)
    assert int(hpm.num_hard(last)) == 6  # of 12
    assert np.take_along_axis(np.asarray(masks.mask), scores.argsort(dim=1).numpy()[:, -6:], axis=1).all()
    assert (np.asarray(masks.mask).sum(axis=1) == 12).all()


def test_files_round_trip(hpm, variables, states, tmp_path):
    student, ema = states
    flat = student | {f"ema_state_dict.{name}": tensor for name, tensor in ema.items()}
    official.assert_round_trip(hpm, variables, LAYOUT, flat, tmp_path)


@pytest.mark.parametrize(("variant", "index"), [("", 0), (":ema", 1)])
def test_downstream_takes_one_of_the_two(checkpoint, states, images, variant, index):
    model = dict(**TINY["model"], class_token=True, pool="class", position="sincos")
    objective = mim_jax.create(dict(task="linear_probe", image_size=16, num_classes=5, model=model))
    with pytest.warns(mim_jax.interop.WeightsWarning):
        variables = mim_jax.import_weights(objective, checkpoint, LAYOUT + variant)
    state = states[index]
    x = official.with_class_token(state, official.embed(state, images) + state["pos_embed"][:, 1:])
    expected = official.norm(state, "norm", official.blocks(state, "blocks", x, 4))[:, 1:]
    official.assert_equal(objective.encode(variables, official.as_batch(images)["image"])["tokens"], expected)


@pytest.mark.parametrize(
    ("size", "encoder", "total"),
    [
        (dict(width=768, depth=12, heads=12, patch_size=16), 85_647_360, 137_269_760),
        (dict(width=1024, depth=24, heads=16, patch_size=16), 303_099_904, 354_853_376),
    ],
    ids=["B", "L"],
)
def test_parameter_counts_are_the_sheets(size, encoder, total):
    config = mim_jax.load_config(str(ROOT / "configs" / "hpm_vit_b16_in1k.py"))
    config.model.update(size)
    objective = mim_jax.create(config)
    variables = jax.eval_shape(objective.init, KEY, objective.batch_spec())
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in variables["params"].items()}
    decoder = variables["params"]["decoder"]
    predictor = [decoder[f"loss_{name}"] for name in ("stack", "norm", "prediction")]
    assert (count["encoder"], sum(count.values())) == (encoder, total)
    assert sum(leaf.size for leaf in jax.tree.leaves(predictor)) == 25_614_080
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["teacher"])) == total


def test_the_errors_are_constants_to_the_loss_predictor(gradients):
    params = gradients["loss_prediction"]["params"]
    for name in ("prediction", "norm", "stack"):
        assert not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(params["decoder"][name]))
    assert np.abs(params["decoder"]["mask_token"]).max() > 0
    assert np.abs(params["encoder"]["patch_embed"]["projection"]["kernel"]).max() > 0
    reconstruction = gradients["reconstruction"]["params"]["decoder"]
    for name in ("loss_prediction", "loss_norm", "loss_stack"):
        assert not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(reconstruction[name]))


def test_without_the_loss_predictor_it_is_mae_on_raw_pixels(variables, images, masks, gradients):
    mae = mim_jax.create({**TINY, "method": "mae", "norm_pix_loss": False})
    params = variables["params"]
    decoder = {name: tree for name, tree in params["decoder"].items() if not name.startswith("loss_")}

    def loss(encoder):
        params = {"encoder": encoder, "decoder": decoder}
        return mae.loss({"params": params}, official.as_batch(images), masks, KEY, clock())[0]

    expected = jax.jit(jax.grad(loss))(params["encoder"])
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6),
        gradients["reconstruction"]["params"]["encoder"],
        expected,
    )


def test_the_order_of_visible_tokens_does_not_matter(hpm, variables, images, masks):
    rows = np.asarray(masks.order).copy()
    rows[:, :4] = rows[:, [2, 0, 3, 1]]
    permuted = masks.replace(order=jnp.asarray(rows))
    loss = jax.jit(lambda m: hpm.loss(variables, official.as_batch(images), m, KEY, clock())[1])
    np.testing.assert_allclose(loss(masks)["prediction"], loss(permuted)["prediction"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(loss(masks)["score"], loss(permuted)["score"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(800, 1_281_167 / 4096), (200, 1_281_167 / 256), (2, 468.75)])
def test_the_chosen_share_grows_by_the_epoch(epochs, steps_per_epoch):
    objective = mim_jax.create(dict(method="hpm"))
    total = int(epochs * steps_per_epoch)
    count = jax.jit(
        jax.vmap(lambda s: objective.num_hard(mim_jax.Clock.at(s, total_steps=total, steps_per_epoch=steps_per_epoch)))
    )
    first = np.ceil(np.arange(epochs) * steps_per_epoch)
    first[0] = 1  # step 0 does not know how long the run is
    # The very last step of an epoch may be as near to the next one as float32 can tell.
    last = np.ceil(np.arange(1, epochs + 1) * steps_per_epoch) - 2
    expected = [int(147 * float((epoch + 1) / epochs) * 0.5) for epoch in range(epochs)]
    np.testing.assert_array_equal(count(jnp.asarray(first, jnp.int32)), expected)
    np.testing.assert_array_equal(count(jnp.asarray(last, jnp.int32)), expected)
    assert int(count(jnp.zeros(1, jnp.int32))[0]) == 0
    if epochs == 800:
        assert (expected.index(1), expected[-1]) == (10, 73)


def test_the_momentum_rises_over_a_hundred_epochs(hpm):
    variables = {"params": {"w": jnp.ones(1)}, "teacher": {"w": jnp.zeros(1)}}
    moved = [
        float(hpm.update(variables, mim_jax.Clock(step=0, epoch=epoch, progress=0.5))["teacher"]["w"][0])
        for epoch in (0.0, 0.9, 50.2, 100.0, 700.0)
    ]
    np.testing.assert_allclose(moved, [1e-3, 1e-3, 5.5e-4, 1e-4, 1e-4], rtol=1e-3)


def test_reconstruction_shows_the_predicted_pixels(hpm, variables, images, masks):
    pictures = jax.jit(hpm.reconstruct)(variables, official.as_batch(images), masks)
    hidden = np.repeat(np.repeat(np.asarray(masks.mask).reshape(3, 4, 4), 4, axis=1), 4, axis=2)
    image = official.as_batch(images)["image"]
    np.testing.assert_array_equal(np.asarray(pictures["reconstruction"])[~hidden], image[~hidden])
    assert not np.allclose(np.asarray(pictures["reconstruction"])[hidden], image[hidden])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"loss_objective": "ranked"}, "loss_objective is 'ranked'"),
        ({"hard_share": 1.5}, r"hard_share is 1\.5"),
        ({"ema": {"epochs": 0}}, r"ema\.epochs is 0"),
    ],
)
def test_bad_values_are_refused(change, match):
    with pytest.raises(ConfigError, match=match):
        mim_jax.create({**TINY, **change})


def test_a_mask_that_keeps_all_but_one_has_no_pairs(hpm, variables):
    batch = synthetic_batch(hpm, 2)
    masks = TokenMask.from_noise(jnp.tile(jnp.arange(16.0)[None], (2, 1)), 15)
    loss, aux = jax.jit(hpm.loss)(variables, batch, masks, KEY, clock())
    assert np.isfinite(loss) and float(aux["terms"]["loss_prediction"]) == 0.0
