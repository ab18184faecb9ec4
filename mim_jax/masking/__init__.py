"""Pure masking functions; one family a file."""

from mim_jax.masking.token_mask import TokenMask as TokenMask
