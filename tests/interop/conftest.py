"""Tiny objectives and their weights as checkpoints."""

import jax
import numpy as np
import pytest

import mim_jax
from mim_jax.interop.exporting import to_tensors
from mim_jax.interop.layout import find_layout

SIZES = dict(width=16, depth=2, heads=4, patch_size=4)


@pytest.fixture
def tiny():
    """`tiny("mae", image_size=8)`: an objective with a 16-wide encoder of two blocks; keywords are config keys."""

    def build(name, **config):
        kind = "task" if name in ("classification", "linear_probe") else "method"
        config = {kind: name, "image_size": 16, **config}
        config["model"] = {**SIZES, **config.get("model", {})}
        if name == "mae":
            config["decoder"] = {"width": 8, "depth": 1, "heads": 2, **config.get("decoder", {})}
        if name == "ijepa":
            config["predictor"] = {"width": 8, "depth": 1, "heads": 2, **config.get("predictor", {})}
            config["blocks"] = {"context_share": 0.25}
        if name == "simmim":
            config["mask_patch_size"] = 8
        if name == "dmjd":
            config |= {"mask_patch_size": 8, "hog": {"cell_size": 4}}
        if kind == "task":
            config["num_classes"] = 5
        return mim_jax.create(config)

    return build


@pytest.fixture
def random_variables():
    """Variables of an objective with every leaf random, so that no two leaves and no two layers are alike."""

    def build(objective, seed=0):
        rng = np.random.default_rng(seed)
        shapes = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())
        return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)

    return build


@pytest.fixture
def checkpoint(random_variables):
    """Tensors of random variables under a layout's names."""

    def build(objective, layout, seed=0):
        name, context, bound = find_layout(objective, layout)
        return to_tensors(context, bound, name, random_variables(objective, seed))

    return build
