"""ResNets and ConvNeXts of `transformers` under official names, and made sparse in the way of SparK's official code."""

from __future__ import annotations

import re
from collections.abc import Iterable

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import ConvNextConfig, ConvNextModel, ResNetConfig, ResNetModel

from mim_jax.interop.layout import Rule, flatten

RENAMES = {
    "resnet": (
        (r"^embedder\.embedder\.convolution", "conv1"),
        (r"^embedder\.embedder\.normalization", "bn1"),
        (r"^encoder\.stages\.(\d+)\.layers\.", lambda found: f"layer{int(found[1]) + 1}."),
        (r"\.layer\.(\d+)\.convolution", lambda found: f".conv{int(found[1]) + 1}"),
        (r"\.layer\.(\d+)\.normalization", lambda found: f".bn{int(found[1]) + 1}"),
        (r"\.shortcut\.convolution", ".downsample.0"),
        (r"\.shortcut\.normalization", ".downsample.1"),
    ),
    "convnext": (
        (r"^embeddings\.patch_embeddings", "downsample_layers.0.0"),
        (r"^embeddings\.layernorm", "downsample_layers.0.1"),
        (r"^encoder\.stages\.(\d+)\.downsampling_layer", r"downsample_layers.\1"),
        (r"^encoder\.stages\.(\d+)\.layers", r"stages.\1"),
        (r"layernorm", "norm"),
        (r"layer_scale_parameter", "gamma"),
    ),
}


def make(kind: str, **sizes) -> nn.Module:
    """A network with random parameters and statistics, in eval mode."""
    torch.manual_seed(0)
    if kind == "resnet":
        network = ResNetModel(ResNetConfig(**sizes))
    else:
        network = ConvNextModel(ConvNextConfig(**sizes, layer_scale_init_value=1.0))
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1:  # of the norms, biases and layer scales, so that none is what it is by default
            center = 0.0 if name.endswith(("bias", "running_mean")) else 1.0
            tensor.copy_(center + 0.2 * torch.randn_like(tensor))
    return network.eval()


def officially(kind: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """Tensors by their official names, without PyTorch's counters of batches."""
    named = {}
    for name, tensor in tensors:
        for pattern, replacement in RENAMES[kind]:
            name = re.sub(pattern, replacement, name)
        if not name.endswith("num_batches_tracked"):
            named[name] = tensor.detach().numpy().astype(np.float32)
    return named


def fill(rules: list[Rule], tensors: dict[str, np.ndarray], variables: dict) -> dict:
    """Variables like the given ones with the tensors in their places; every leaf and every tensor is needed."""
    left, by_path = set(tensors), {rule.path: rule for rule in rules}
    filled = []
    for path, leaf in flatten(variables).items():
        names = by_path[path].tensor_names(leaf.shape)
        assert {tensors[name].shape for name in names} == {by_path[path].expected_shape(leaf.shape)}, path
        filled.append(by_path[path].to_ours([tensors[name] for name in names], leaf.shape))
        left -= set(names)
    assert not left
    return jax.tree.unflatten(jax.tree.structure(variables), filled)


class Sparse:
    """The mask that all layers of a network share, `active [B, 1, f, f]` bool."""

    def __init__(self, active: torch.Tensor):
        self.active = active

    def at(self, x: torch.Tensor) -> torch.Tensor:
        """The mask at the size of maps `x [B, C, H, W]`."""
        side = x.shape[2] // self.active.shape[2]
        return self.active.repeat_interleave(side, 2).repeat_interleave(side, 3)

    def hide(self, x: torch.Tensor) -> torch.Tensor:
        """Zeros at hidden sites."""
        return x * self.at(x)


def sparsify(network: nn.Module, active: torch.Tensor) -> nn.Module:
    """Changes the forward passes of convolutions, poolings and norms of a ResNet or ConvNeXt of `transformers`.

    A ConvNeXt's blocks multiply by the mask once more before the residual sum. The images are masked by the caller.
    """
    sparse = Sparse(active)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            module.register_forward_hook(lambda module, inputs, output: sparse.hide(output))
        elif isinstance(module, nn.BatchNorm2d):
            module.forward = _at_active_sites(sparse, module)
        elif getattr(module, "data_format", "") == "channels_first":  # a ConvNeXt's norms of whole maps
            module.register_forward_hook(lambda module, inputs, output: sparse.hide(output))
        elif type(module).__name__ == "ConvNextLayer":
            module.drop_path.register_forward_hook(lambda module, inputs, output: sparse.hide(output))
    return network


def _at_active_sites(sparse: Sparse, norm: nn.BatchNorm2d):
    def forward(x: torch.Tensor) -> torch.Tensor:
        sites = sparse.at(x).squeeze(1).nonzero(as_tuple=True)
        channels_last = x.permute(0, 2, 3, 1)
        rows = F.batch_norm(
            channels_last[sites],
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            norm.training,
            norm.momentum,
            norm.eps,
        )
        out = torch.zeros_like(channels_last)
        out[sites] = rows
        return out.permute(0, 3, 1, 2)

    return forward
