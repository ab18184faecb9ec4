"""Rules for convolutional encoders: ResNets under the names of torchvision and timm, and the official ConvNeXt's."""

from __future__ import annotations

from mim_jax.interop.blocks import linear, norm
from mim_jax.interop.layout import Context, Ignored, Rule

COUNTERS = Ignored(r"\.num_batches_tracked$", "the momentum of the statistics is constant")
CONVOLUTION = "o i h w -> h w i o"  # a depthwise kernel's i has length one on both sides


def convolution(name: str, path: str, **flags) -> list[Rule]:
    """A convolution; see `Rule` for `flags`."""
    return [
        Rule((f"{name}.weight",), f"{path}/kernel", CONVOLUTION, **flags),
        Rule((f"{name}.bias",), f"{path}/bias", **flags),
    ]


def batch_norm(name: str, path: str, **flags) -> list[Rule]:
    """A BatchNorm, its parameters at `path`, "params/...", and its running statistics at the same path of "state"."""
    state = "state" + path[path.index("/") :]
    return [
        *norm(name, path, **flags),
        Rule((f"{name}.running_mean",), f"{state}/mean", **flags),
        Rule((f"{name}.running_var",), f"{state}/var", **flags),
    ]


def resnet_encoder(prefix: str, part: str, context: Context) -> list[Rule]:
    """A ResNet of bottleneck blocks; `prefix` ends in a dot or is empty.

    PyTorch's counters have no counterpart here: layouts ignore `COUNTERS`.
    """
    rules = [*convolution(f"{prefix}conv1", f"{part}/stem_conv"), *batch_norm(f"{prefix}bn1", f"{part}/stem_norm")]
    for stage in range(1, len(context.config.model.depths) + 1):
        name, path = f"{prefix}layer{stage}", f"{part}/stage{stage}"
        rules += _bottleneck(f"{name}.0", f"{path}/first")
        rules += convolution(f"{name}.0.downsample.0", f"{path}/first/conv_shortcut")
        rules += batch_norm(f"{name}.0.downsample.1", f"{path}/first/norm_shortcut")
        rules += _bottleneck(f"{name}.{{i}}", f"{path}/blocks", first=1)
    return rules


def _bottleneck(name: str, path: str, **flags) -> list[Rule]:
    rules = []
    for number in (1, 2, 3):
        rules += convolution(f"{name}.conv{number}", f"{path}/conv{number}", **flags)
        rules += batch_norm(f"{name}.bn{number}", f"{path}/norm{number}", **flags)
    return rules


def convnext_encoder(prefix: str, part: str, context: Context) -> list[Rule]:
    """A ConvNeXt; `prefix` ends in a dot or is empty.

    The official `norm` follows the average, so it is a classifier's here, `params/norm`; in pre-training there is none.
    """
    stem = f"{prefix}downsample_layers.0"
    rules = [*convolution(f"{stem}.0", f"{part}/stem_conv"), *norm(f"{stem}.1", f"{part}/stem_norm")]
    for stage in range(len(context.config.model.depths)):
        if stage:
            name, path = f"{prefix}downsample_layers.{stage}", f"{part}/reduce{stage}"
            rules += [*norm(f"{name}.0", f"{path}_norm"), *convolution(f"{name}.1", f"{path}_conv")]
        name, path = f"{prefix}stages.{stage}.{{i}}", f"{part}/stage{stage}/blocks"
        rules += [
            *convolution(f"{name}.dwconv", f"{path}/depthwise"),
            *norm(f"{name}.norm", f"{path}/norm"),
            *linear(f"{name}.pwconv1", f"{path}/fc1"),
            *linear(f"{name}.pwconv2", f"{path}/fc2"),
            Rule((f"{name}.gamma",), f"{path}/gamma"),
        ]
    return [*rules, *norm(f"{prefix}norm", "params/norm")]
