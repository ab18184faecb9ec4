import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.masking.progressive import Curriculum, TokenSelector, choose_ranks, draw

NEAR, FAR, RANDOM = 0, 400, 700
BATCH, N, WIDTH = 6, 196, 8


@pytest.fixture(scope="module")
def tokens():
    return jax.random.normal(jax.random.key(0), (BATCH, N, WIDTH)) + 1.0


@pytest.fixture(scope="module")
def select(tokens):
    """`select(epoch, seed=1)`: the paper's selector at 196 patches, compiled once for all epochs."""
    selector = TokenSelector(N)
    compiled = jax.jit(lambda rng, epoch: selector(rng, jnp.zeros((BATCH, N)), tokens, epoch))
    compiled(jax.random.key(1), jnp.int32(0))

    def select(epoch, seed=1):
        result = compiled(jax.random.key(seed), jnp.int32(epoch))
        assert compiled._cache_size() == 1
        return tuple(np.asarray(ids) for ids in result)

    return select


def official_counts(epoch, count):
    """Nearest and farthest tokens by the literals of the official code, step 4 of selectivemae.md."""
    if epoch <= 280:
        return count, 0
    if epoch < 300:
        near = int((1 - (epoch - 280) / 20) * count)
        return near, count - near
    if epoch <= 580:
        return 0, count
    if epoch < 600:
        return 0, int((1 - (epoch - 580) / 20) * count)
    return 0, 0


@pytest.mark.parametrize("count", [7, 8, 10])
def test_the_stages_are_the_official_ones(count):
    counts = jax.jit(lambda epoch: Curriculum().counts(epoch, count))
    for epoch in (0, 1, 279, *range(280, 302), 450, 579, *range(580, 602), 799, 900):
        assert tuple(int(c) for c in counts(jnp.int32(epoch))) == official_counts(epoch, count), epoch


def test_the_papers_epochs_are_stretched_to_the_run():
    stretched, literal = Curriculum(), Curriculum(epochs=None)
    for epoch in (0, 280, 281, 300, 580, 599, 600, 799):
        progress = jnp.float32(epoch) / jnp.float32(800)
        assert int(stretched.epoch(jnp.float32(epoch), progress)) == epoch
        assert int(stretched.epoch(jnp.float32(epoch) / 8, progress)) == epoch  # a run of 100 epochs
        assert int(literal.epoch(jnp.float32(epoch), 0.123)) == epoch
    assert int(literal.epoch(280.9, 0.5)) == 280


@pytest.mark.parametrize("epoch", [NEAR, 290, FAR, 590, RANDOM])
def test_29_patches_are_seen_49_predicted_and_118_never_touched(select, epoch):
    visible, predicted = select(epoch)
    assert (visible.shape, predicted.shape) == ((BATCH, 29), (BATCH, 49))
    for seen, wanted in zip(visible, predicted, strict=True):
        assert len(set(seen) | set(wanted)) == 29 + 49
        assert seen.min() >= 0 and max(seen.max(), wanted.max()) < N
        assert (np.diff(wanted) > 0).all()


def similarity_to(tokens, row, chosen):
    """The largest cosine of every token of a row to the chosen ones."""
    x = np.asarray(tokens[row], np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return (x @ x[chosen].T).max(axis=1)


@pytest.mark.parametrize(("epoch", "sign"), [(NEAR, 1), (FAR, -1)])
def test_each_sub_step_adds_the_nearest_or_the_farthest(select, tokens, epoch, sign):
    visible, _ = select(epoch)
    for row, ids in enumerate(visible):
        for before, after in ((14, 21), (21, 29)):
            similarity = sign * similarity_to(tokens, row, ids[:before])
            rest = np.setdiff1d(np.arange(N), ids[:after])
            assert similarity[ids[before:after]].min() >= similarity[rest].max() - 1e-6


def test_near_and_far_start_from_the_same_draw_and_part(select):
    near, far = select(NEAR)[0], select(FAR)[0]
    np.testing.assert_array_equal(near[:, :14], far[:, :14])
    for a, b in zip(near[:, 14:], far[:, 14:], strict=True):
        assert not set(a) & set(b)


@pytest.mark.parametrize("epoch", [281, 290, 299])
def test_between_near_and_far_some_of_each(select, tokens, epoch):
    visible, _ = select(epoch)
    near, far = official_counts(epoch, 7)
    for row, ids in enumerate(visible):
        candidates = np.setdiff1d(np.arange(N), ids[:14])
        order = candidates[np.argsort(similarity_to(tokens, row, ids[:14])[candidates])]
        expected = {*order[:far], *order[len(order) - near :]}
        assert set(ids[14:21]) == expected


def test_between_far_and_random_the_certain_ones_are_the_farthest(select, tokens):
    visible, _ = select(590)
    ranks = []
    for row, ids in enumerate(visible):
        candidates = np.setdiff1d(np.arange(N), ids[:14])
        order = candidates[np.argsort(similarity_to(tokens, row, ids[:14])[candidates])]
        ranks.append([int(np.flatnonzero(order == i)[0]) for i in ids[14:21]])
    assert ranks[0][:3] == [0, 1, 2] and ranks[0][3:] != [3, 4, 5, 6]
    assert all(row == ranks[0] for row in ranks)  # one choice of ranks for the whole batch


def test_random_ranks_are_uniform():
    keys = jax.random.split(jax.random.key(3), 2000)
    ranks = jax.vmap(lambda key: choose_ranks(key, 20, 5, jnp.int32(0), jnp.int32(0)))(keys)
    counts = np.bincount(np.asarray(ranks).ravel(), minlength=20)
    assert (np.abs(counts - 500) < 5 * np.sqrt(500)).all()
    assert all(len(set(row)) == 5 for row in np.asarray(ranks))


def test_predicted_patches_are_uniform_over_those_not_seen(select):
    counts = np.zeros(N)
    for seed in range(40):
        counts += np.bincount(select(RANDOM, seed)[1].ravel(), minlength=N)
    expected = 40 * BATCH * 49 / N
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_draws_follow_the_scores_and_never_repeat():
    probability = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
    ids = np.asarray(draw(jax.random.key(4), jnp.broadcast_to(jnp.log(probability), (20_000, 4)), 2))
    first = np.bincount(ids[:, 0], minlength=4) / 20_000
    np.testing.assert_allclose(first, probability, atol=4 * 0.5 / np.sqrt(20_000))
    second = np.bincount(ids[ids[:, 0] == 0, 1], minlength=4) / (ids[:, 0] == 0).sum()
    np.testing.assert_allclose(second, [0, 0.6, 0.3, 0.1], atol=4 * 0.5 / np.sqrt(10_000))


def test_scores_bias_what_is_seen_and_what_is_predicted(tokens):
    rich = jnp.where(jnp.arange(N) < 100, 50.0, 0.0)  # so much more likely that no other is drawn
    selected = TokenSelector(N)(jax.random.key(1), jnp.broadcast_to(rich, (BATCH, N)), tokens, RANDOM)
    assert np.asarray(selected.visible)[:, :14].max() < 100
    assert np.asarray(selected.predicted).max() < 100


def test_random_selection_needs_no_tokens():
    visible, predicted = TokenSelector(N, selection="random")(jax.random.key(1), jnp.zeros((400, N)), None, NEAR)
    counts = np.bincount(np.asarray(visible).ravel(), minlength=N)
    expected = 400 * 29 / N
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
    assert not (np.asarray(visible)[:, :, None] == np.asarray(predicted)[:, None]).any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Curriculum(far=10), "curriculum.far 10"),
        (lambda: Curriculum(random=310), "curriculum.random 310"),
        (lambda: Curriculum(mixing=0), "curriculum.mixing 0"),
        (lambda: Curriculum(epochs=0), "curriculum.epochs is 0"),
        (lambda: TokenSelector(N, selection="best"), "selection is 'best'"),
        (lambda: TokenSelector(9, mask_ratio=0.85), "mask_ratio 0.85 keeps 1 of 9"),
        (lambda: TokenSelector(N, predicted_ratio=0.9), "kept_mask_ratio 0.9 predicts 176 patches, of the 167"),
        (lambda: TokenSelector(N, predicted_ratio=0.001), "kept_mask_ratio 0.001 predicts 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
