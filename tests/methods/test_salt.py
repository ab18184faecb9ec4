"""SALT and V-Pixel: parity with V-JEPA's forward in PyTorch, written from salt.md, and the sheet's checks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file

import mim_jax
from mim_jax.data import check_views
from mim_jax.errors import ConfigError
from mim_jax.interop import WeightsWarning
from mim_jax.masking.multiblock3d import ClipMask
from mim_jax.training.duration import RunLength
from mim_jax.training.schedules import learning_rate_schedule, weight_decay_schedule
from mim_jax.training.sharding import make_mesh
from tests.interop import test_official_layouts as official
from tests.tiny import ROOT, clock, synthetic_batch, tiny_config
from tests.training.runs import TinyRun, single_device_mesh

LAYOUT = "facebookresearch/jepa"
WIDTH, PREDICTOR, TIMES, TUBELET, SIDE, PATCH = 16, 20, 2, 2, 4, 4
KEY = jax.random.key(0)
KINDS = ("images", "clips")


def make(method, kind, **config):
    """A tiny objective on 4x4 patches of images, or 2x4x4 tubes of clips."""
    frames, tubelet = (TIMES * TUBELET, TUBELET) if kind == "clips" else (1, 1)
    model = dict(width=WIDTH, depth=2, heads=4, patch_size=PATCH, tubelet_size=tubelet)
    model |= config.pop("model", {"position": "sincos" if kind == "clips" else "sincos_rows_first"})
    return mim_jax.create(dict(method=method, image_size=SIDE * PATCH, num_frames=frames, model=model, **config))


def make_salt(kind, outputs=WIDTH, **config):
    """A student whose teacher is `outputs` wide and one block deep."""
    teacher = dict(width=outputs, depth=1, heads=2)
    return make("salt", kind, predictor=dict(width=PREDICTOR, depth=2, heads=2), teacher=teacher, **config)


def table(kind, width):
    """Positions by time, row and column in parts of 2 * ceil(width / 6), or by row and column in halves."""
    axes, part = (3, 2 * math.ceil(width / 6)) if kind == "clips" else (2, width // 2)
    rows = []
    for token in range(tokens_of(kind)):
        place = (token // SIDE**2, token // SIDE % SIDE, token % SIDE)[-axes:]
        angles = [[x / 10000 ** (2 * k / part) for k in range(part // 2)] for x in place]
        rows.append([f(angle) for axis in angles for f in (math.sin, math.cos) for angle in axis][:width])
    return torch.tensor(rows, dtype=torch.float64).float()[None]


def tokens_of(kind):
    return SIDE**2 * (TIMES if kind == "clips" else 1)


def encoder_state(kind, width, depth, seed):
    kernel = (TUBELET, PATCH, PATCH) if kind == "clips" else (PATCH, PATCH)
    shapes = {"patch_embed.proj.weight": (width, 3, *kernel), "patch_embed.proj.bias": (width,)}
    shapes |= official.norm_shapes("norm", width)
    for layer in range(depth):
        shapes |= official.block_shapes(f"blocks.{layer}", width)
    return official.random_state(shapes, seed) | {"pos_embed": table(kind, width)}


def predictor_state(kind, outputs, seed):
    shapes = {
        **official.linear_shapes("predictor_embed", PREDICTOR, WIDTH),
        "mask_tokens.0": (1, 1, PREDICTOR),
        "mask_tokens.1": (1, 1, PREDICTOR),
        **official.block_shapes("predictor_blocks.0", PREDICTOR),
        **official.block_shapes("predictor_blocks.1", PREDICTOR),
        **official.norm_shapes("predictor_norm", PREDICTOR),
        **official.linear_shapes("predictor_proj", outputs, PREDICTOR),
    }
    return official.random_state(shapes, seed) | {"predictor_pos_embed": table(kind, PREDICTOR)}


def official_states(kind, outputs=WIDTH):
    return {
        "encoder": encoder_state(kind, WIDTH, 2, seed=0),
        "predictor": predictor_state(kind, outputs, seed=1),
        "target_encoder": encoder_state(kind, outputs, 1, seed=2),
    }


def trainable(states):
    return {part: {name: x.requires_grad_() for name, x in state.items()} for part, state in states.items()}


def wrapped(states):
    """As a training checkpoint has them."""
    parts = {part: {f"module.backbone.{n}": x.detach() for n, x in state.items()} for part, state in states.items()}
    return {**parts, "epoch": 300, "opt": {"state": {0: torch.zeros(3)}}}


def pixels_of(kind):
    frames = (TIMES * TUBELET,) if kind == "clips" else ()
    generator = torch.Generator().manual_seed(1)
    return torch.randn((3, 3, *frames, SIDE * PATCH, SIDE * PATCH), generator=generator)


def as_batch(pixels):
    return {"video" if pixels.ndim == 5 else "image": pixels.moveaxis(1, -1).numpy()}


def hand_made_lists(kind):
    """Ascending context and target lists of two kinds of masks, each of one length, as the official collator's."""
    rng = np.random.default_rng(3)
    lists = []
    for num_context, num_targets in ((5, 8), (3, 10)):
        order = np.stack([rng.permutation(tokens_of(kind)) for _ in range(3)])
        context, targets = order[:, :num_context], order[:, num_context : num_context + num_targets]
        lists.append((torch.from_numpy(np.sort(context)), torch.from_numpy(np.sort(targets))))
    return lists


def as_masks(lists):
    return tuple(ClipMask(*(ids.numpy().astype(np.int32) for ids in pair)) for pair in lists)


def encode(state, pixels, heads, ids=None):
    """salt.md, "Architecture": the tokens of a whole clip, or those at `ids`."""
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    convolution = F.conv3d if pixels.ndim == 5 else F.conv2d
    x = convolution(pixels, weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2) + state["pos_embed"]
    x = x if ids is None else official.gather(x, ids)
    return official.norm(state, "norm", official.blocks(state, "blocks", x, heads))


def predict(state, latent, context, targets, kind):
    positions = state["predictor_pos_embed"].expand(len(latent), -1, -1)
    x = official.linear(state, "predictor_embed", latent) + official.gather(positions, context)
    queries = state[f"mask_tokens.{kind}"] + official.gather(positions, targets)
    x = official.blocks(state, "predictor_blocks", torch.cat([x, queries], dim=1), 2)
    x = official.norm(state, "predictor_norm", x)
    return official.linear(state, "predictor_proj", x[:, context.shape[1] :])


def predictions_of(states, pixels, lists):
    predictions = []
    for kind, (context, targets) in enumerate(lists):
        latent = encode(states["encoder"], pixels, 4, context)
        predictions.append(predict(states["predictor"], latent, context, targets, kind))
    return predictions


def salt_reference(states, pixels, lists, heads=2):
    """Predictions, targets and loss of salt.md, stage 2."""
    target = encode(states["target_encoder"], pixels, heads)
    target = F.layer_norm(target, target.shape[-1:])
    targets = [official.gather(target, ids) for _, ids in lists]
    predictions = predictions_of(states, pixels, lists)
    losses = [(p - t).abs().mean() for p, t in zip(predictions, targets, strict=True)]
    return predictions, targets, sum(losses) / len(losses)


def pixel_reference(states, pixels, lists):
    """Predictions and loss of salt.md, stage 1."""
    clips = pixels if pixels.ndim == 5 else pixels[:, :, None]
    tubelet = TUBELET if pixels.ndim == 5 else 1
    tubes = clips.unfold(2, tubelet, tubelet).unfold(3, PATCH, PATCH).unfold(4, PATCH, PATCH)
    target = tubes.permute(0, 2, 3, 4, 5, 6, 7, 1).flatten(4).flatten(1, 3)
    target = (target - target.mean(-1, keepdim=True)) / (target.std(-1, keepdim=True) + 1e-6)
    predictions = predictions_of(states, pixels, lists)
    pairs = zip(predictions, (official.gather(target, ids) for _, ids in lists), strict=True)
    return predictions, sum((p - t).square().mean() for p, t in pairs) / len(lists)


def jitted_loss(objective):
    return jax.jit(lambda variables, batch, masks: objective.loss(variables, batch, masks, KEY, clock()))


@pytest.fixture(scope="module", params=KINDS)
def imported(request):
    """A student with a wider teacher on images or clips, its official weights, and its compiled loss."""
    kind, outputs = request.param, 24
    objective, states = make_salt(kind, outputs), official_states(kind, outputs)
    variables = mim_jax.import_weights(objective, wrapped(states), LAYOUT, strict=True)
    return kind, objective, states, variables, jitted_loss(objective)


def test_stage_two_is_official_on_hand_made_lists(imported):
    kind, _, states, variables, loss = imported
    lists = hand_made_lists(kind)
    predictions, targets, expected = salt_reference(states, pixels_of(kind), lists)
    value, aux = loss(variables, as_batch(pixels_of(kind)), as_masks(lists))
    for ours, theirs in zip((*aux["prediction"], *aux["target"]), (*predictions, *targets), strict=True):
        official.assert_equal(ours, theirs)
    official.assert_equal(value, expected)
    assert value == aux["terms"]["prediction"]


def test_the_layout_holds_everything(imported, tmp_path):
    _, objective, states, variables, _ = imported
    flat = {f"{part}.{name}": tensor for part, state in states.items() for name, tensor in state.items()}
    official.assert_round_trip(objective, variables, LAYOUT, flat, tmp_path)


def test_slots_that_are_not_in_use_change_nothing(imported):
    """Lists of different lengths are padded; the loss is then that of each clip by itself."""
    kind, _, _, variables, loss = imported
    batch, masks, rng = as_batch(pixels_of(kind)), as_masks(hand_made_lists(kind)), np.random.default_rng(0)

    def ragged(ids):
        keep = ids.shape[1] - np.array([0, 2, 2])
        valid = np.arange(ids.shape[1] + 2)[None] < keep[:, None]
        padded = np.concatenate([ids, ids[:, :2]], axis=1)
        return np.where(valid, padded, rng.integers(0, 16, padded.shape)).astype(np.int32), valid

    pairs = [(ragged(mask.context), ragged(mask.targets)) for mask in masks]
    together = tuple(ClipMask(c, t, c_valid, t_valid) for (c, c_valid), (t, t_valid) in pairs)
    value, _ = loss(variables, batch, together)
    alone = []
    for clip in range(3):
        one = {name: x[clip : clip + 1] for name, x in batch.items()}
        own = tuple(
            ClipMask(c[clip : clip + 1, : c_valid[clip].sum()], t[clip : clip + 1, : t_valid[clip].sum()])
            for (c, c_valid), (t, t_valid) in pairs
        )
        alone.append(float(loss(variables, one, own)[0]))
    assert float(value) == pytest.approx(np.mean(alone), rel=1e-5)


def test_with_the_student_as_teacher_it_is_v_jepa():
    """Where V-JEPA's EMA starts: a teacher of the student's size takes its parameters as they are."""
    sizes = dict(width=WIDTH, depth=2, heads=4)
    objective = make("salt", "clips", predictor=dict(width=PREDICTOR, depth=2, heads=2), teacher=sizes)
    states = official_states("clips")
    states["target_encoder"] = states["encoder"]
    params = mim_jax.import_weights(objective, wrapped(states), LAYOUT, strict=True)["params"]
    lists = hand_made_lists("clips")
    _, _, expected = salt_reference(states, pixels_of("clips"), lists, heads=4)
    variables = {"params": params, "teacher": {"teacher": params["encoder"]}}
    value, _ = jitted_loss(objective)(variables, as_batch(pixels_of("clips")), as_masks(lists))
    official.assert_equal(value, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_stage_one_is_official_on_hand_made_lists(kind, tmp_path):
    """Its decoder has the form of a predictor, and the official name of one."""
    states = official_states(kind, math.prod((TUBELET, PATCH, PATCH, 3)) if kind == "clips" else PATCH * PATCH * 3)
    del states["target_encoder"]
    objective = make("salt_pixel", kind, decoder=dict(width=PREDICTOR, depth=2, heads=2))
    variables = mim_jax.import_weights(objective, wrapped(states), LAYOUT, strict=True)
    flat = {f"{part}.{name}": tensor for part, state in states.items() for name, tensor in state.items()}
    official.assert_round_trip(objective, variables, LAYOUT, flat, tmp_path)
    lists = hand_made_lists(kind)
    predictions, expected = pixel_reference(states, pixels_of(kind), lists)
    value, aux = jitted_loss(objective)(variables, as_batch(pixels_of(kind)), as_masks(lists))
    for ours, theirs in zip(aux["prediction"], predictions, strict=True):
        official.assert_equal(ours, theirs)
    official.assert_equal(value, expected)


@pytest.mark.parametrize("stage", ["salt", "salt_pixel"])
def test_gradients_are_official(stage, tmp_path):
    pixels, lists = pixels_of("clips"), hand_made_lists("clips")
    if stage == "salt":
        objective, states = make_salt("clips"), trainable(official_states("clips"))
        loss = salt_reference(states, pixels, lists)[-1]
    else:
        objective = make("salt_pixel", "clips", decoder=dict(width=PREDICTOR, depth=2, heads=2))
        states = trainable(official_states("clips", TUBELET * PATCH * PATCH * 3))
        del states["target_encoder"]
        loss = pixel_reference(states, pixels, lists)[-1]
    loss.backward()
    variables = mim_jax.import_weights(objective, wrapped(states), LAYOUT, strict=True)
    ours = lambda params: objective.loss(
        {**variables, "params": params}, as_batch(pixels), as_masks(lists), KEY, clock()
    )
    gradients = jax.jit(lambda params: jax.grad(ours, has_aux=True)(params)[0])(variables["params"])
    exported = load_file(mim_jax.export_weights(objective, {**variables, "params": gradients}, tmp_path, LAYOUT))
    for part in ("encoder", "predictor"):
        for name, parameter in states[part].items():
            if not name.endswith("pos_embed"):  # fixed
                atol = 2e-5 * parameter.grad.abs().max().item()
                found = exported[f"{part}.{name}"]
                np.testing.assert_allclose(found, parameter.grad.numpy(), rtol=0, atol=atol, err_msg=name)


def test_a_teacher_may_be_called_so(imported):
    _, objective, states, variables, _ = imported
    renamed = {{"target_encoder": "teacher"}.get(part, part): state for part, state in states.items()}
    same = mim_jax.import_weights(objective, renamed, LAYOUT, strict=True)
    jax.tree.map(np.testing.assert_array_equal, same, variables)


@pytest.mark.parametrize("recipe", ["salt_vit_b16_in1k", "salt_pixel_vit_b16_in1k", "salt_vit_l16_video"])
def test_schedules_advance_before_they_are_read(recipe):
    """As V-JEPA's do: its first update is at step 1, and its last at the end."""
    config = mim_jax.load_config(str(ROOT / "configs" / f"{recipe}.py"))
    length = RunLength(3_000_000, config.batch_size)
    total = length.steps(config.duration, "duration")
    rate, decay = learning_rate_schedule(config, total, length), weight_decay_schedule(config, total)
    assert float(rate(0)) == pytest.approx(2e-4 + (6.25e-4 - 2e-4) / 10_000, rel=1e-6)
    assert float(rate(9_999)) == pytest.approx(6.25e-4, rel=1e-6)
    assert float(rate(total - 1)) == pytest.approx(1e-6, rel=1e-4)
    assert float(decay(total - 1)) == pytest.approx(0.4, rel=1e-6)


def test_parameter_counts_of_vit_l_on_clips():
    sizes = dict(width=1024, depth=24, heads=16)
    config = dict(method="salt", num_frames=16, model=dict(**sizes, tubelet_size=2), teacher=sizes)
    objective = mim_jax.create(config)
    variables = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())
    parts = {**variables["params"], **variables["teacher"]}
    counts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in parts.items()}
    assert counts == {"encoder": 303_885_312, "predictor": 22_082_944, "teacher": 303_885_312}


@pytest.fixture(scope="module")
def salt():
    return make_salt("clips", 24)


@pytest.fixture(scope="module")
def batch(salt):
    return synthetic_batch(salt, 3)


@pytest.fixture(scope="module")
def variables(salt, batch):
    return jax.jit(lambda: salt.init(jax.random.key(0), batch))()


@pytest.fixture(scope="module")
def masks(salt, batch):
    return jax.jit(lambda: salt.masks({}, batch, jax.random.key(2), clock()))()


@pytest.fixture(scope="module")
def loss(salt):
    return jitted_loss(salt)


def test_masks_come_in_two_kinds_from_draws_of_their_own(salt, batch, masks):
    assert len(masks) == 2
    short, long = masks
    assert [mask.context.shape for mask in masks] == [(3, 10), (3, 4)]
    assert [mask.targets.shape for mask in masks] == [(3, 18), (3, 24)]
    assert not np.array_equal(short.context[:, :4], long.context)
    assert set(salt.batch_spec()) == {"video"} and batch["video"].shape == (3, 4, 16, 16, 3)


def test_the_loss_is_the_absolute_error_averaged_over_clips_and_kinds(variables, batch, masks, loss):
    value, aux = loss(variables, batch, masks)
    losses = []
    for prediction, target, mask in zip(aux["prediction"], aux["target"], masks, strict=True):
        error = np.abs(np.asarray(prediction, np.float64) - np.asarray(target)).mean(axis=-1)
        losses.append(np.mean([row[used].mean() for row, used in zip(error, mask.targets_valid, strict=True)]))
    assert float(value) == pytest.approx(np.mean(losses), rel=1e-5)
    assert [float(aux["metrics"][f"prediction_{kind}"]) for kind in (0, 1)] == pytest.approx(losses, rel=1e-5)


def with_precomputed_targets(target):
    """A student whose teacher says `target` whatever it sees; it is not normalised."""
    objective = make_salt("clips", 24, normalize_targets=False)
    objective.teachers = {"teacher": lambda params, clips: target}
    return objective


def test_a_teacher_may_be_swapped_for_its_targets(salt, variables, batch, masks, loss):
    teacher = salt.teachers["teacher"](variables["teacher"]["teacher"], batch["video"])
    target = jax.nn.standardize(teacher, axis=-1, epsilon=1e-5)
    value, _ = jitted_loss(with_precomputed_targets(target))(variables, batch, masks)
    assert float(value) == pytest.approx(float(loss(variables, batch, masks)[0]), rel=1e-6)


@pytest.fixture(scope="module")
def loss_on_ones():
    return jitted_loss(with_precomputed_targets(jnp.ones((3, 32, 24), jnp.float32)))


@pytest.mark.parametrize("offset", [0.0, -0.3, 2.0])
def test_closed_cases_of_the_loss(variables, batch, masks, loss_on_ones, offset):
    """Equal tensors give 0, and a constant offset c gives |c|, also beyond where smooth L1 would bend."""
    last = variables["params"]["predictor"]["projection"]
    flat = {"kernel": jnp.zeros_like(last["kernel"]), "bias": jnp.full_like(last["bias"], 1.0 + offset)}
    params = {**variables["params"], "predictor": {**variables["params"]["predictor"], "projection": flat}}
    value, _ = loss_on_ones({**variables, "params": params}, batch, masks)
    assert float(value) == pytest.approx(abs(offset), abs=1e-6)


def test_the_student_does_not_see_target_tubes(variables, batch, masks, loss):
    """Of each kind, whatever the tubes beyond its context hold."""
    _, aux = loss(variables, batch, masks)
    for kind, mask in enumerate(masks):
        seen = np.zeros((3, 32), bool)
        for row, ids, used in zip(seen, mask.context, mask.context_valid, strict=True):
            row[ids[used]] = True
        pixels = seen.reshape(3, 2, 1, 4, 1, 4, 1).repeat(2, 2).repeat(4, 4).repeat(4, 6).reshape(3, 4, 16, 16, 1)
        other = {"video": jnp.where(pixels, batch["video"], jnp.full((), 7.0, jnp.float32))}
        _, changed = loss(variables, other, masks)
        np.testing.assert_array_equal(changed["latent"][kind], aux["latent"][kind])
        assert np.abs(changed["target"][kind] - aux["target"][kind]).max() > 0.1


def test_kinds_of_masks_have_tokens_of_their_own(salt, variables, batch, masks):
    def second_kind(params):
        _, aux = salt.loss({**variables, "params": params}, batch, masks, KEY, clock())
        return aux["metrics"]["prediction_1"]

    gradient = jax.jit(jax.grad(second_kind))(variables["params"])["predictor"]["mask_tokens"]
    assert not np.abs(gradient[0]).max() > 0
    assert np.abs(gradient[1]).max() > 0


def test_training_leaves_the_teacher_as_it_is():
    run = TinyRun(tiny_config("salt"), single_device_mesh())
    before = run.fresh_state()
    after, _ = run.train(2, before)
    jax.tree.map(np.testing.assert_array_equal, after.variables["teacher"], before.variables["teacher"])
    same = jax.tree.map(np.array_equal, after.variables["params"], before.variables["params"])
    assert not all(jax.tree.leaves(same))
    trained = {leaf.shape for leaf in jax.tree.leaves(run.optimizer.init(before.variables["params"])) if leaf.ndim}
    assert trained == {leaf.shape for leaf in jax.tree.leaves(before.variables["params"])}


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_is_taken_from_the_first_stage(kind):
    first = make("salt_pixel", kind, decoder=dict(width=PREDICTOR, depth=1, heads=2))
    second = make(
        "salt",
        kind,
        model={**first.config.model.to_dict(), "width": 8, "heads": 2},
        predictor=dict(width=PREDICTOR, depth=1, heads=2),
        teacher=dict(width=16, depth=2, heads=4),
    )
    batch = synthetic_batch(first, 2)
    variables = jax.jit(lambda: first.init(jax.random.key(0), batch))()
    teacher = second.teachers["teacher"]
    (clips,) = batch.values()
    tokens = teacher(teacher.take(variables), clips)
    np.testing.assert_allclose(tokens, first.encode(variables, clips)["tokens"], rtol=1e-5, atol=1e-5)
    expected = jax.tree.map(jnp.shape, variables["params"]["encoder"])
    assert jax.tree.map(jnp.shape, jax.eval_shape(teacher.init, KEY)) == expected


def test_a_teacher_is_imported_from_v_jepas_target_encoder(imported):
    kind, objective, states, variables, _ = imported
    teacher = objective.teachers["teacher"]
    with pytest.warns(WeightsWarning) as record:
        read = mim_jax.import_weights(teacher.objective, wrapped(states), teacher.layout)
    assert len(record) == 2  # the encoder is not used, and there is no predictor
    jax.tree.map(np.testing.assert_array_equal, teacher.take(read), variables["teacher"]["teacher"])
    (clips,) = as_batch(pixels_of(kind)).values()
    official.assert_equal(teacher(teacher.take(read), clips), encode(states["target_encoder"], pixels_of(kind), 2))


@pytest.fixture(scope="module")
def pixel():
    return make("salt_pixel", "clips", decoder=dict(width=PREDICTOR, depth=1, heads=2))


@pytest.fixture(scope="module")
def pixel_variables(pixel, batch):
    return jax.jit(lambda: pixel.init(jax.random.key(0), batch))()


def test_a_prediction_of_zero_has_almost_error_one(pixel, pixel_variables, batch, masks):
    params = pixel_variables["params"]
    silent = jax.tree.map(jnp.zeros_like, params["decoder"]["projection"])
    params = {**params, "decoder": {**params["decoder"], "projection": silent}}
    value, _ = jitted_loss(pixel)({"params": params}, batch, masks)
    n = 2 * 4 * 4 * 3
    assert float(value) == pytest.approx((n - 1) / n, rel=1e-4)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_reconstructions_show_context_and_predictions(pixel, pixel_variables, batch, masks, norm_pix):
    objective = make("salt_pixel", "clips", decoder=dict(width=PREDICTOR, depth=1, heads=2), norm_pix_loss=norm_pix)
    pictures = jax.jit(objective.reconstruct)(pixel_variables, batch, masks)
    side_by_side = batch["video"].transpose(0, 2, 1, 3, 4).reshape(3, 16, 64, 3)
    np.testing.assert_array_equal(pictures["original"], side_by_side)
    seen, predicted = np.zeros((2, 3, 32), bool)
    for shown, ids, valid in (
        (seen, masks[0].context, masks[0].context_valid),
        (predicted, masks[0].targets, masks[0].targets_valid),
    ):
        for row, own, used in zip(shown, ids, valid, strict=True):
            row[own[used]] = True

    def pixels(tubes):
        grid = tubes.reshape(3, 2, 1, 4, 1, 4, 1).repeat(2, 2).repeat(4, 4).repeat(4, 6).reshape(3, 4, 16, 16)
        return grid.transpose(0, 2, 1, 3).reshape(3, 16, 64)

    masked, reconstruction = (np.asarray(pictures[name]) for name in ("masked", "reconstruction"))
    np.testing.assert_array_equal(masked, np.where(pixels(seen)[..., None], side_by_side, 0))
    np.testing.assert_array_equal(reconstruction[pixels(seen)], side_by_side[pixels(seen)])
    assert not reconstruction[~pixels(seen | predicted)].any()
    _, aux = jitted_loss(objective)(pixel_variables, batch, masks)
    guess = np.asarray(aux["prediction"][0])[0, 0].reshape(2, 4, 4, 3)
    token = int(masks[0].targets[0, 0])
    time, row, column = token // 16, token // 4 % 4, token % 4
    shown = reconstruction.reshape(3, 16, 4, 16, 3)[
        0, 4 * row : 4 * row + 4, 2 * time : 2 * time + 2, 4 * column : 4 * column + 4
    ].transpose(1, 0, 2, 3)
    if norm_pix:
        true = np.asarray(batch["video"])[
            0, 2 * time : 2 * time + 2, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4
        ]
        guess = guess * true.std(ddof=1) + true.mean()
    np.testing.assert_allclose(shown, guess, rtol=1e-4, atol=1e-4)


def test_encode_takes_clips_and_images(salt, variables, batch):
    features = jax.jit(salt.encode)(variables, batch["video"])
    assert features["tokens"].shape == (3, 32, 16)
    np.testing.assert_allclose(features["pooled"], features["tokens"].mean(axis=1), rtol=1e-5, atol=1e-6)
    assert salt.encode(variables, batch["video"][:, 0])["tokens"].shape == (3, 32, 16)


@pytest.mark.parametrize("blocks", [dict(num_blocks=(8,)), dict(num_blocks=(8, 2), scale=(0.15, 0.7, 0.3))])
def test_lists_of_mask_kinds_must_agree(blocks):
    with pytest.raises(ConfigError, match=r"blocks\.num_blocks, blocks\.scale, .* must be equally long"):
        make_salt("clips", blocks=blocks)


def test_clips_have_to_be_handed_in(salt):
    check_views(salt.config, make_salt("images").batch_spec())
    with pytest.raises(ConfigError, match="salt reads clips, which no data.source has"):
        check_views(salt.config, salt.batch_spec())


def test_clips_train_alike_on_eight_devices_in_micro_batches():
    clips = {"num_frames": 4, "model.tubelet_size": 2, "image_size": 16}
    _, expected = TinyRun(tiny_config("salt", clips), single_device_mesh()).train(2)
    changes = {**clips, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "accumulation_steps": 2}
    config = tiny_config("salt", changes)
    _, rows = TinyRun(config, make_mesh(config.mesh)).train(2)
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in expected], rtol=2e-5)


def test_images_of_another_size_are_refused(salt, variables, batch, masks):
    with pytest.raises(ConfigError, match="Images of 4x8x8 were given to an encoder for 4x16x16"):
        salt.loss(variables, {"video": batch["video"][:, :, :8, :8]}, masks, None, clock())
