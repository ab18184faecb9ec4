"""The training loop and what it is made of; it knows objectives by their contract only."""

from mim_jax.training.defaults import default_config as default_config
