"""Layer masking (arXiv 2211.14646): its rules one by one, and a ResNet under it against a PyTorch one that follows the
paper's code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mim_jax.errors import ConfigError
from mim_jax.layers.compute import Compute
from mim_jax.layers.filled_sites import FILLS, FilledSites, fill_from_neighbors
from mim_jax.models.convnext import ConvNeXt
from mim_jax.models.resnet import ResNet

SIZE = 32
KEY = jax.random.key(0)


def masks() -> dict[str, np.ndarray]:
    """Visible pixels `[2, 32, 32]`: half of the blocks of 8x8; and an ellipse with a hole of single pixels."""
    rng = np.random.default_rng(0)
    blocks = np.stack([rng.permutation(16) < 8 for _ in range(2)]).reshape(2, 4, 4)
    blocks = blocks.repeat(8, axis=1).repeat(8, axis=2)
    y, x = np.mgrid[:SIZE, :SIZE]
    ellipse = ((y - 14) / 13) ** 2 + ((x - 18) / 9) ** 2 < 1
    return {"blocks": blocks, "ellipse": np.stack([ellipse & (rng.random((SIZE, SIZE)) < 0.9), ~ellipse])}


MASKS = masks()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def resnet():
    return ResNet(image_size=(SIZE, SIZE), depths=(2, 1), widths=(4, 6), stem_width=8)


def randomized(variables):
    """All parameters and statistics at random, so that nothing hides behind a 0 or a 1."""
    rng = np.random.default_rng(2)

    def draw(path, leaf):
        if path[-1].key in ("var", "scale"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(scale=0.3, size=leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.device_get(variables))


@pytest.fixture(scope="module")
def variables(resnet, images):
    return randomized(jax.jit(resnet.init)(KEY, images))


@pytest.fixture(scope="module")
def pooled(resnet):
    """Features of what is visible, by fill."""

    def pool(variables, images, visible, fill):
        tokens = resnet.apply(variables, images, sites=FilledSites(visible=visible, fill=fill))
        return resnet.split(tokens)["pooled"]

    return jax.jit(pool, static_argnames="fill")


# The peer: the paper's algorithm in PyTorch, NCHW, with the parameters of ours.


def peer_fill(x, m, rings):
    ones = torch.ones(1, 1, 3, 3)
    x = x * m
    for _ in range(rings):
        total = torch.nn.functional.conv2d(x, ones.repeat(x.shape[1], 1, 1, 1), padding=1, groups=x.shape[1])
        count = torch.nn.functional.conv2d(m, ones, padding=1)
        x = x + ((1 - m) * total / (count + 1e-5)).detach()
        m = (m + count).clip(0, 1)
    return x


class Peer:
    """The stem, the bottlenecks and the pooling."""

    def __init__(self, variables, fill):
        self.params, self.statistics, self.fill = variables["params"], variables["batch_stats"], fill

    def conv_norm(self, x, m, places, names, stride=1, relu=True):
        params, statistics = self.params, self.statistics
        for place in places:
            params, statistics = params[place], statistics[place]
        layer = lambda tree: tree[0] if places and places[-1] == "blocks" else tree
        kernel = torch.from_numpy(np.ascontiguousarray(layer(params[names[0]]["kernel"]).transpose(3, 2, 0, 1)))
        size = kernel.shape[-1]
        if self.fill == "neighbors":
            x = peer_fill(x, m, size)
        elif self.fill == "zeros":
            x = x * m
        y = torch.nn.functional.conv2d(x, kernel, stride=stride, padding=size // 2)
        if self.fill == "partial":
            share = torch.nn.functional.conv2d(m, torch.ones(1, 1, size, size) / size**2, None, stride, size // 2)
            y = y / (share + 1e-8)
        m = torch.nn.functional.max_pool2d(m, size, stride, size // 2)
        arrays = [statistics[names[1]]["mean"], statistics[names[1]]["var"]]
        arrays += [params[names[1]]["scale"], params[names[1]]["bias"]]
        mean, var, scale, bias = (torch.from_numpy(np.array(layer(array))) for array in arrays)
        y = torch.nn.functional.batch_norm(y * m, mean, var, scale, bias) * m
        return (torch.relu(y) * m if relu else y), m

    def bottleneck(self, x, m, places, stride=1):
        y, n = self.conv_norm(x, m, places, ("conv1", "norm1"))
        y, n = self.conv_norm(y, n, places, ("conv2", "norm2"), stride)
        y, n = self.conv_norm(y, n, places, ("conv3", "norm3"), relu=False)
        if places[-1] == "first":
            x, m = self.conv_norm(x, m, places, ("conv_shortcut", "norm_shortcut"), stride, relu=False)
        m = m * n
        return torch.relu((x + y) * m) * m, m

    def __call__(self, images, visible):
        m = torch.from_numpy(visible[:, None].astype(np.float32))
        x = images * m
        x, m = self.conv_norm(x, m, (), ("stem_conv", "stem_norm"), 2)
        pool = lambda z: torch.nn.functional.max_pool2d(z, 3, 2, 1)
        x, m = pool(x) * pool(m), pool(m)
        x, m = self.bottleneck(x, m, ("stage1", "first"))
        x, m = self.bottleneck(x, m, ("stage1", "blocks"))
        x, m = self.bottleneck(x, m, ("stage2", "first"), 2)
        return (x * m).mean(dim=(2, 3)) / (m.mean(dim=(2, 3)) + 1e-8)


def to_torch(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", MASKS)
def test_a_resnet_is_the_papers(variables, images, pooled, name, fill):
    ours = pooled(variables, images, MASKS[name], fill)
    theirs = Peer(variables, fill)(to_torch(images), MASKS[name]).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    assert np.abs(ours[0] - ours[1]).max() > 0.01 * np.abs(theirs).max()


def test_gradients_are_the_papers(resnet, variables, images):
    """Of the visible pixels with filled values held constant; none of the hidden ones."""
    visible, weights = MASKS["blocks"], np.random.default_rng(3).normal(size=(24,)).astype(np.float32)

    def score(images):
        tokens = resnet.apply(variables, images, sites=FilledSites(visible=visible))
        return (resnet.split(tokens)["pooled"] @ weights).sum()

    ours = np.asarray(jax.jit(jax.grad(score))(images))
    theirs = to_torch(images).requires_grad_()
    (Peer(variables, "neighbors")(theirs, visible) @ torch.from_numpy(weights)).sum().backward()
    expected = theirs.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert (ours[~visible] == 0).all() and (ours[visible] != 0).any()


@pytest.mark.parametrize("fill", FILLS)
def test_an_intact_image_is_as_without_the_rule(resnet, variables, images, pooled, fill):
    expected = resnet.split(resnet.apply(variables, images))["pooled"]
    ours = pooled(variables, images, np.ones((2, SIZE, SIZE), bool), fill)
    if fill == "partial":  # at the border its windows are not whole
        assert np.abs(ours - expected).max() > 1e-3
    else:
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MASKS)
def test_hidden_pixels_change_nothing(variables, images, pooled, name):
    visible = MASKS[name]
    noise = 100 * np.random.default_rng(4).normal(size=images.shape).astype(np.float32)
    changed = np.where(visible[..., None], images, noise)
    for fill in FILLS:
        expected = pooled(variables, images, visible, fill)
        np.testing.assert_array_equal(pooled(variables, changed, visible, fill), expected)
    filled, zeroed = (pooled(variables, images, visible, fill) for fill in ("neighbors", "zeros"))
    assert np.abs(filled - zeroed).max() > 1e-3


def test_an_image_that_is_hidden_altogether_has_no_features(variables, images, pooled):
    assert (pooled(variables, images, np.zeros((2, SIZE, SIZE), bool), "neighbors") == 0).all()


def column(visible: np.ndarray) -> np.ndarray:
    return visible[..., None].astype(np.float32)


@pytest.mark.parametrize("rings", [1, 3, 7])
def test_filling_is_the_papers(images, rings):
    for visible in MASKS.values():
        ours = jax.jit(fill_from_neighbors, static_argnums=2)(images, column(visible), rings)
        theirs = peer_fill(to_torch(images), torch.from_numpy(visible[:, None].astype(np.float32)), rings)
        np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(ours[visible], images[visible])


def test_a_constant_is_filled_with_itself():
    constant, visible = np.full((2, SIZE, SIZE, 3), 3.0, np.float32), MASKS["ellipse"]
    filled = np.asarray(fill_from_neighbors(jnp.asarray(constant), column(visible), SIZE))
    np.testing.assert_allclose(filled, constant, rtol=1e-3)  # count / (count + 1e-5) on each of up to 32 rings
    assert (fill_from_neighbors(jnp.asarray(constant), np.zeros((2, SIZE, SIZE, 1), np.float32), 3) == 0).all()


def test_one_ring_is_the_eight_neighbours():
    for visible in MASKS.values():
        filled = fill_from_neighbors(jnp.ones((2, SIZE, SIZE, 1)), column(visible), 1)[..., 0] != 0
        padded = np.pad(visible, ((0, 0), (1, 1), (1, 1)))
        grown = np.any([padded[:, i : i + SIZE, j : j + SIZE] for i in range(3) for j in range(3)], axis=0)
        np.testing.assert_array_equal(filled, grown)
        assert (grown != visible).any()


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2), (4, 4)])
def test_a_window_that_sees_anything_is_visible(images, size, stride):
    visible = MASKS["blocks"]
    rule = FilledSites(visible=visible)
    kernel = jax.random.normal(KEY, (size, size, 3, 5))
    found = rule.convolve(rule.enter(images), kernel, jnp.ones(5), stride)
    padding = size // 2 if size % 2 else 0
    expected = torch.nn.functional.max_pool2d(
        torch.from_numpy(visible[:, None].astype(np.float32)), size, stride, padding
    ).numpy()[:, 0]
    np.testing.assert_array_equal(found.visible[..., 0], expected)
    maps = np.asarray(found.features)
    assert (maps[expected == 0] == 0).all() and (maps[expected == 1] != 0).all()


def test_the_visible_area_grows_in_the_stem_alone(resnet, images):
    """Half of the blocks become about two thirds of the map; the residual sums stop it."""
    shares = []

    class Recording(FilledSites):
        def add(self, x, branch):
            y = super().add(x, branch)
            shares.extend([x.visible.mean(), branch.visible.mean(), y.visible.mean()])
            return y

    coarse = np.repeat(np.repeat(MASKS["blocks"][:, ::8, ::8], 28, axis=1), 28, axis=2)  # 112 pixels, blocks of 28
    big = np.zeros((2, 112, 112, 3), np.float32)
    net = resnet.clone(image_size=(112, 112), depths=(1, 1))
    variables = net.init(KEY, big)
    shares.clear()
    net.apply(variables, big, sites=Recording(visible=coarse))
    first, branch, joined, *_ = (float(share) for share in shares)
    assert coarse.mean() == 0.5 and 0.6 < first < 0.8
    assert branch > first == joined


def test_pooling_is_over_visible_sites(images):
    rule = FilledSites(visible=MASKS["ellipse"])
    constant = np.full_like(images, 7.0)
    np.testing.assert_allclose(rule.pool(rule.enter(constant)), 7.0, rtol=1e-5)
    x = rule.enter(images)
    expected = [image[visible].mean(axis=0) for image, visible in zip(images, MASKS["ellipse"], strict=True)]
    np.testing.assert_allclose(rule.pool(x), expected, atol=1e-5)
    np.testing.assert_allclose(rule.leave(x).mean(axis=(1, 2)), expected, atol=1e-5)


def test_a_convnext_takes_it_too(images):
    net = ConvNeXt(image_size=(SIZE, SIZE), depths=(1, 2), widths=(4, 8), layer_scale=1.0, final_norm=False)
    variables = randomized(net.init(KEY, images))

    @jax.jit
    def encode(images, visible):
        return net.split(net.apply(variables, images, sites=FilledSites(visible=visible)))

    intact = encode(images, np.ones((2, SIZE, SIZE), bool))["pooled"]
    np.testing.assert_allclose(intact, net.split(net.apply(variables, images))["pooled"], rtol=1e-4, atol=1e-4)
    visible = MASKS["blocks"]
    changed = np.where(visible[..., None], images, 5.0)
    np.testing.assert_array_equal(encode(changed, visible)["pooled"], encode(images, visible)["pooled"])


def test_in_half_precision_it_is_close(resnet, variables, images, pooled):
    half = resnet.clone(compute=Compute(dtype="bfloat16"))
    tokens = half.apply(variables, images, sites=FilledSites(visible=MASKS["blocks"]))
    assert tokens.dtype == jnp.bfloat16
    expected = pooled(variables, images, MASKS["blocks"], "neighbors")
    np.testing.assert_allclose(half.split(tokens)["pooled"], expected, atol=0.05 * np.abs(expected).max())


def test_it_is_for_trained_networks(resnet, variables, images):
    with pytest.raises(ConfigError, match="is for trained networks.*leave train=False"):
        resnet.apply(variables, images, train=True, sites=FilledSites(visible=MASKS["blocks"]), mutable=["batch_stats"])
    with pytest.raises(ConfigError, match="choose one of neighbors, zeros, partial"):
        FilledSites(visible=MASKS["blocks"], fill="grey").enter(images)
