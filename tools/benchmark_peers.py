"""The PyTorch models that `tools/benchmark.py` times beside ours, randomly initialised, and what they are fed."""

from __future__ import annotations

import itertools
import types
from typing import Any

import numpy as np
import spark_peer
import torch
import transformers
from ml_collections import ConfigDict


def build(config: ConfigDict) -> torch.nn.Module:
    """The model that does the work of `config`, whose method is MAE, SimMIM or SparK; its output has a `loss`."""
    return {"mae": _mae, "simmim": _simmim, "spark": SparK}[config.method](config)


def inputs(config: ConfigDict, device: str) -> dict[str, torch.Tensor]:
    """Random pixels, and masks where the model does not draw them itself."""
    rng = np.random.default_rng(0)
    shape = (config.batch_size, config.channels, config.image_size, config.image_size)
    batch = {"pixel_values": torch.from_numpy(rng.normal(size=shape).astype(np.float32))}
    if config.method == "simmim":
        patches = (config.image_size // config.model.patch_size) ** 2
        batch["bool_masked_pos"] = torch.from_numpy(rng.uniform(size=(config.batch_size, patches)) < config.mask_ratio)
    if config.method == "spark":
        side = config.image_size // SparK.PATCH
        noise = rng.uniform(size=(config.batch_size, side * side))
        visible = noise.argsort().argsort() < round(side * side * (1.0 - config.mask_ratio))
        batch["active"] = torch.from_numpy(visible.reshape(-1, 1, side, side))
    return {name: x.to(device) for name, x in batch.items()}


def _encoder_sizes(config: ConfigDict) -> dict[str, Any]:
    model = config.model
    return dict(
        image_size=config.image_size,
        num_channels=config.channels,
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        intermediate_size=4 * model.width,
        patch_size=model.patch_size,
        attn_implementation="sdpa",
    )


def _mae(config: ConfigDict) -> torch.nn.Module:
    decoder = config.decoder
    settings = transformers.ViTMAEConfig(
        **_encoder_sizes(config),
        decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.heads,
        decoder_intermediate_size=4 * decoder.width,
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss,
    )
    return transformers.ViTMAEForPreTraining(settings)


def _simmim(config: ConfigDict) -> torch.nn.Module:
    model = config.model
    if model.backbone != "swin":
        settings = transformers.ViTConfig(**_encoder_sizes(config), encoder_stride=model.patch_size)
        return transformers.ViTForMaskedImageModeling(settings)
    settings = transformers.SwinConfig(
        image_size=config.image_size,
        num_channels=config.channels,
        embed_dim=model.width,
        depths=list(model.depths),
        num_heads=list(model.heads),
        window_size=model.window,
        drop_path_rate=model.drop_path,
        patch_size=model.patch_size,
        encoder_stride=model.patch_size * 2 ** (len(model.depths) - 1),
        attn_implementation="sdpa",
    )
    return transformers.SwinForMaskedImageModeling(settings)


class SparK(torch.nn.Module):
    """The forward pass of `spark_peer` for a ResNet or a ConvNeXt, with its tensors as parameters and buffers."""

    PATCH = 32  # pixels that are hidden together

    def __init__(self, config: ConfigDict):
        super().__init__()
        model = config.model
        if model.backbone == "resnet":
            self.network, stages = spark_peer.resnet, [4 * width for width in model.widths]
            shapes = spark_peer.resnet_shapes(model.stem_width, model.depths, model.widths)
        else:
            self.network, stages = spark_peer.convnext, list(model.widths)
            shapes = spark_peer.convnext_shapes(model.depths, model.widths)
        shapes |= spark_peer.rest_shapes(stages, config.decoder.width, model.backbone == "resnet")
        for name, value in spark_peer.random_state(shapes).items():
            key = name.replace(".", "/")  # PyTorch allows no dots
            if "running" in name:
                self.register_buffer(key, value)
            else:
                self.register_parameter(key, torch.nn.Parameter(value))

    def forward(self, pixel_values: torch.Tensor, active: torch.Tensor) -> types.SimpleNamespace:
        """The loss of images `[B, 3, H, W]` of which the patches `active [B, 1, f, f]` are visible."""
        tensors = itertools.chain(self.named_parameters(), self.named_buffers())
        state = {key.replace("/", "."): tensor for key, tensor in tensors}
        _, loss = spark_peer.spark(state, pixel_values, active, self.network, self.PATCH)
        return types.SimpleNamespace(loss=loss)
