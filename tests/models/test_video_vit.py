import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.masking.multiblock3d import ClipMask
from mim_jax.models import tube_predictor, video_vit, vit

SIZES = dict(width=16, depth=2, heads=2, patch_size=4)
CLIPS = dict(num_frames=4, model=dict(**SIZES, tubelet_size=2))


def make_config(**changes):
    """A `salt_pixel` config; `model` is merged."""
    model = {**SIZES, **changes.pop("model", {})}
    return mim_jax.resolve(dict(method="salt_pixel", image_size=16, model=model, **changes))


@pytest.fixture(scope="module")
def encoder():
    return video_vit.build(make_config(**CLIPS))


@pytest.fixture(scope="module")
def clips():
    return jax.random.normal(jax.random.key(1), (2, 4, 16, 16, 3), jnp.float32)


@pytest.fixture(scope="module")
def params(encoder, clips):
    return jax.jit(encoder.init)(jax.random.key(0), clips)


@pytest.fixture(scope="module")
def apply(encoder):
    return jax.jit(lambda params, clips, **slots: encoder.apply(params, clips, **slots))


def random_ids(count, seed=0, batch=2, tokens=32):
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(tokens)[:count] for _ in range(batch)]).astype(np.int32)


def test_sizes_of_a_clip(encoder, apply, params, clips):
    assert (encoder.tube, encoder.tube_grid, encoder.num_patches) == ((2, 4, 4), (2, 4, 4), 32)
    assert params["params"]["patch_embed"]["projection"]["kernel"].shape == (2 * 4 * 4 * 3, 16)
    assert apply(params, clips).shape == (2, 32, 16)


def test_over_one_frame_it_is_a_vit():
    config = make_config()
    own, plain = video_vit.build(config), vit.build(config)
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3), jnp.float32)
    params = jax.jit(plain.init)(jax.random.key(0), images)
    shapes = jax.eval_shape(own.init, jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    ids = random_ids(5, tokens=16)
    np.testing.assert_allclose(
        own.apply(params, images, ids_keep=ids), plain.apply(params, images, ids_keep=ids), rtol=1e-5, atol=1e-5
    )


def test_unused_slots_change_nothing_and_see_no_pixels(apply, params, clips):
    ids = random_ids(7)
    assert 5 not in ids  # the tube of the unused slots
    padded = np.concatenate([ids, np.full((2, 3), 5, np.int32)], axis=1)
    valid = np.broadcast_to(np.arange(10) < 7, (2, 10))
    alone = apply(params, clips, ids_keep=ids)
    together = apply(params, clips, ids_keep=padded, valid=valid)
    np.testing.assert_allclose(together[:, :7], alone, rtol=1e-5, atol=1e-5)
    otherwise = apply(params, clips, ids_keep=np.where(valid, padded, 9), valid=valid)
    np.testing.assert_array_equal(otherwise[:, :7], together[:, :7])
    # What comes out of them does not see their pixels either: tube 5 is in the second row and column of the first time.
    repainted = apply(params, clips.at[:, :2, 4:8, 4:8].set(9.0), ids_keep=padded, valid=valid)
    np.testing.assert_array_equal(repainted, together)
    used_differently = apply(params, clips, ids_keep=padded, valid=np.ones_like(valid))
    assert np.abs(used_differently[:, :7] - alone).max() > 1e-3


def test_an_image_is_a_clip_that_stands_still(apply, params, clips):
    still = jnp.broadcast_to(clips[:, :1], clips.shape)
    np.testing.assert_array_equal(apply(params, clips[:, 0]), apply(params, still))


def test_time_has_positions(apply, params, clips):
    """Of a clip that stands still the two times differ by their positions alone."""
    first, second = np.split(np.asarray(apply(params, clips[:, 0])), 2, axis=1)
    assert np.abs(first - second).max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(model=dict(class_token=True, pool="class")), "model.class_token"),
        (dict(model=dict(relative_bias=True)), "model.relative_bias"),
        (dict(model=dict(num_registers=2)), "model.num_registers"),
        (dict(model=dict(pre_norm=True)), "model.pre_norm"),
        (dict(num_frames=3, model=dict(tubelet_size=2)), "num_frames 3 is not divisible"),
        (dict(num_frames=0), "num_frames 0"),
        (dict(num_frames=4, model=dict(position="learned")), "choose 'sincos'"),
        (dict(model=dict(position="rope")), "model.position is 'rope'"),
        (dict(model=dict(patch_size=5)), "not divisible by model.patch_size"),
    ],
)
def test_impossible_encoders_are_refused(changes, match):
    with pytest.raises(ConfigError, match=match):
        video_vit.build(make_config(**changes))


@pytest.fixture(scope="module")
def predictor(encoder):
    config = make_config(**CLIPS, decoder=dict(width=12, depth=1, heads=2))
    return tube_predictor.build(config, "decoder", encoder, output_dim=5, num_kinds=2)


@pytest.fixture(scope="module")
def predictor_params(predictor):
    """With mask tokens that are not zero."""
    ids = jnp.zeros((1, 1), jnp.int32)
    init = jax.jit(lambda key: predictor.init(key, jnp.zeros((1, 1, 16), jnp.float32), ClipMask(ids, ids), 0))
    params = init(jax.random.key(0))["params"]
    assert not params["mask_tokens"].any()
    return {"params": {**params, "mask_tokens": jax.random.normal(jax.random.key(1), (2, 12), jnp.float32)}}


def test_unused_slots_change_no_prediction(predictor, predictor_params):
    ids, latent = random_ids(12), jax.random.normal(jax.random.key(2), (2, 5, 16), jnp.float32)
    plain = predictor.apply(predictor_params, latent, ClipMask(ids[:, :5], ids[:, 5:]), 0)
    assert plain.shape == (2, 7, 5) and plain.dtype == jnp.float32

    def pad(x, count):
        return jnp.pad(x, ((0, 0), (0, count)) + ((0, 0),) * (x.ndim - 2), constant_values=3)

    context_valid, targets_valid = (np.broadcast_to(np.arange(n + 2) < n, (2, n + 2)) for n in (5, 7))
    mask = ClipMask(pad(ids[:, :5], 2), pad(ids[:, 5:], 2), context_valid, targets_valid)
    padded = predictor.apply(predictor_params, pad(latent, 2), mask, 0)
    np.testing.assert_allclose(padded[:, :7], plain, rtol=1e-5, atol=1e-5)


def test_kinds_of_masks_take_their_tokens_in_turn(predictor, predictor_params):
    ids, latent = random_ids(12), jax.random.normal(jax.random.key(2), (2, 5, 16), jnp.float32)
    mask = ClipMask(ids[:, :5], ids[:, 5:])
    first, second, third = (predictor.apply(predictor_params, latent, mask, kind) for kind in range(3))
    assert np.abs(first - second).max() > 1e-2
    np.testing.assert_array_equal(first, third)


@pytest.mark.parametrize(
    ("decoder", "match"),
    [
        (dict(width=12, heads=5), "decoder.width 12 is not divisible"),
        (dict(width=12, heads=2, num_mask_tokens=3), "decoder.num_mask_tokens is 3"),
        (dict(width=12, heads=2, num_mask_tokens=0), "decoder.num_mask_tokens is 0"),
    ],
)
def test_impossible_predictors_are_refused(encoder, decoder, match):
    with pytest.raises(ConfigError, match=match):
        tube_predictor.build(make_config(**CLIPS, decoder=decoder), "decoder", encoder, output_dim=5, num_kinds=2)
