import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.masking.mixed import MixedMask, check_groups, join_groups, part_groups, random_owners


@pytest.fixture(scope="module")
def owners():
    return jax.jit(lambda: random_owners(jax.random.key(0), 3, 16, 4))()


def test_members_own_equal_shares_that_tile_the_grid(owners):
    assert [np.bincount(row).tolist() for row in np.asarray(owners)] == [[4] * 4] * 3
    owned = ~np.asarray(MixedMask.from_owners(owners, 4).owned.mask)
    assert (owned.sum(axis=1) == 4).all()
    assert (owned.reshape(4, 3, 16).sum(axis=0) == 1).all()


def test_every_member_is_equally_likely_at_every_patch():
    owners = np.asarray(jax.jit(lambda: random_owners(jax.random.key(1), 4000, 8, 2))())
    assert abs(owners.mean(axis=0) - 0.5).max() < 0.04  # five standard deviations


def test_a_member_owns_what_the_owners_say(owners):
    mask = MixedMask.from_owners(owners, 4)
    for image in range(12):
        member, group = divmod(image, 3)
        np.testing.assert_array_equal(mask.owned.ids_keep[image], np.flatnonzero(np.asarray(owners[group]) == member))
        assert mask.segment[image] == member


def test_micro_batches_and_shifts_keep_groups_together(owners):
    """Images that share a mixed image still do after a shift of the batch, and in every micro-batch."""
    tokens = jnp.arange(24, dtype=jnp.int32)[:, None, None]

    def groups(tokens):
        return {frozenset(row) for row in np.asarray(join_groups(tokens, 4))[:, :, 0].tolist()}

    whole, shifted = groups(tokens), groups(jnp.roll(tokens, 1, axis=0))
    micro = set().union(*(groups(tokens[part::3]) for part in range(3)))
    assert whole == shifted == micro


def test_joining_puts_members_in_a_row_and_parting_undoes_it():
    tokens = jax.random.normal(jax.random.key(0), (6, 5, 2))
    joined = join_groups(tokens, 3)
    np.testing.assert_array_equal(joined[1], jnp.concatenate([tokens[1], tokens[3], tokens[5]]))
    np.testing.assert_array_equal(part_groups(joined, 3), tokens)


def test_broken_groups_are_refused_in_one_sentence():
    check_groups(16, 4, 4)
    with pytest.raises(ConfigError, match=r"^A batch of 18 images is not divisible by group_size 4; [^.]*\.$"):
        check_groups(18, 4)
    with pytest.raises(ConfigError, match="times accumulation_steps 3"):
        check_groups(16, 4, 3)
