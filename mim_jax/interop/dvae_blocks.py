"""Rules for DALL-E's discrete VAE, whose encoder other repositories use as a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping

from mim_jax.interop.layout import Rule

_CONVOLUTION = "o i h w -> h w i o"


def dvae_network(prefix: str, part: str, sizes: Mapping[str, int]) -> list[Rule]:
    """Its encoder or its decoder, which have the same names.

    `prefix` ends in a dot or is empty; of `sizes`, `groups` and `depth` count.
    """
    rules = [*_convolution(f"{prefix}blocks.input", f"{part}/input")]
    for group in range(1, sizes["groups"] + 1):
        for block in range(1, sizes["depth"] + 1):
            name, path = f"{prefix}blocks.group_{group}.block_{block}", f"{part}/group{group}_block{block}"
            rules += _convolution(f"{name}.id_path", f"{path}/shortcut")
            for number in range(1, 5):
                rules += _convolution(f"{name}.res_path.conv_{number}", f"{path}/conv{number}")
    return [*rules, *_convolution(f"{prefix}blocks.output.conv", f"{part}/output")]


def _convolution(name: str, path: str) -> list[Rule]:
    return [Rule((f"{name}.w",), f"{path}/kernel", _CONVOLUTION), Rule((f"{name}.b",), f"{path}/bias")]
