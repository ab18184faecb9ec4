"""Floating-point operations of a function, counted from the shapes of its matrix products and convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """`jaxpr_flops` of one call of `function(*args)`; the arguments may be abstract."""
    return jaxpr_flops(jax.make_jaxpr(function)(*args))


def jaxpr_flops(jaxpr: ClosedJaxpr) -> float:
    """FLOPs of one call of a traced function over all devices.

    Matrix products and convolutions alone, 2 for each multiply-add, as models are commonly compared: elementwise work,
    softmax and norms are left out, which are a few percent of a transformer. Scans count as often as they run, what
    rematerialisation computes again counts again, and of a conditional the dearest branch counts.
    """
    return _count(jaxpr.jaxpr)


def _count(jaxpr: Jaxpr) -> float:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        return _dot_general(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in equation.params["branches"])
    repeats = equation.params["length"] if name == "scan" else 1
    inner = (_count(jaxpr) for value in equation.params.values() for jaxpr in _jaxprs(value))
    return repeats * sum(inner)


def _jaxprs(value: Any) -> list[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    return [value] if isinstance(value, Jaxpr) else []


def _dot_general(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[dim] for dim in contracted)


def _convolution(equation: Any) -> float:
    # Each output value is a sum over the kernel's taps and the input channels of its group.
    kernel = equation.invars[1].aval.shape
    out_channel_dim = equation.params["dimension_numbers"].rhs_spec[0]
    taps = math.prod(size for dim, size in enumerate(kernel) if dim != out_channel_dim)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * taps
