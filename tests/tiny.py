"""Tiny runs of any method: its Fashion-MNIST config with every network shrunk."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import mim_jax
from mim_jax.config import objective_names

ROOT = pathlib.Path(__file__).parents[1]
METHODS = objective_names("method")


def tiny_config(method: str, overrides: dict | None = None) -> ConfigDict:
    """`configs/<method>_fashion_mnist.py` on synthetic data, two narrow blocks deep everywhere, batches of 16."""
    config = mim_jax.load_config(str(ROOT / "configs" / f"{method}_fashion_mnist.py"))
    _shrink(config)
    changes = {
        "data.source": "synthetic:64",
        "batch_size": 16,
        "duration": "8 steps",
        "schedule.warmup": "2 steps",
        "optimizer.lr_reference_batch": None,
        "optimizer.lr": 1e-3,
        "evaluation.every": None,
        "checkpoint.every": "4 steps",
        "log.every": "1 steps",
        "log.tensorboard": False,
        **(overrides or {}),
    }
    for name, value in changes.items():
        mim_jax.config.override(config, name, value)
    return config


def _shrink(config: ConfigDict) -> None:
    for section in config.values():
        if isinstance(section, ConfigDict):
            if {"width", "depth", "heads"} <= set(section):
                section.update(width=16, depth=2)
                section.heads = 2 if section.heads is not None else None
            if {"depths", "widths", "stem"} <= set(section):  # a ResNet
                stages = len(section.depths)
                section.update(depths=(1,) * (stages - 1) + (2,), widths=(8,) * stages, stem_width=8)
            if {"depths", "window"} <= set(section):  # a Swin Transformer
                stages = len(section.depths)
                section.update(width=8, depths=(2,) * stages, heads=(2,) * stages)
            _shrink(section)


def synthetic_batch(objective: mim_jax.Objective, batch_size: int = 16, seed: int = 0) -> dict[str, jax.Array]:
    """Random values for everything the objective reads from a batch."""
    batch = {}
    for index, (name, spec) in enumerate(sorted(objective.batch_spec(batch_size).items())):
        rng = jax.random.fold_in(jax.random.key(seed), index)
        if jnp.issubdtype(spec.dtype, jnp.integer):
            batch[name] = jax.random.randint(rng, spec.shape, 0, 10, spec.dtype)
        else:
            batch[name] = jax.random.normal(rng, spec.shape, spec.dtype)
    return batch


def clock(step: int = 0, total_steps: int = 8) -> mim_jax.Clock:
    """A clock in a run of `total_steps` with four steps an epoch."""
    return mim_jax.Clock.at(step, total_steps=total_steps, steps_per_epoch=4.0)
