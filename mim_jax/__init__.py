"""Masked image modelling in JAX: published pre-training methods behind one contract.

    config = mim_jax.load_config("configs/mae_vit_b16_in1k.py", {"model.depth": 2})
    objective = mim_jax.create(config)
    variables = objective.init(rng, batch)
    masks = objective.masks(variables, batch, rng, clock)
    loss, aux = objective.loss(variables, batch, masks, rng, clock)

See `mim_jax/contract.py` for what an objective is.
"""

from mim_jax.config import create as create
from mim_jax.config import default_config as default_config
from mim_jax.config import load_config as load_config
from mim_jax.config import resolve as resolve
from mim_jax.contract import Clock as Clock
from mim_jax.contract import Objective as Objective
from mim_jax.interop import export_weights as export_weights
from mim_jax.interop import import_weights as import_weights
from mim_jax.masking import TokenMask as TokenMask

__version__ = "0.1.0"
