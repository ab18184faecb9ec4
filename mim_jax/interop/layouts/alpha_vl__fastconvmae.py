"""Checkpoints of Alpha-VL/FastConvMAE, which are like those of Alpha-VL/ConvMAE."""

from mim_jax.interop.layouts.alpha_vl__convmae import layout

__all__ = ["layout"]
