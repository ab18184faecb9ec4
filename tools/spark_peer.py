"""SparK in PyTorch, written from its method sheet in the official checkpoint's layout; nothing of the package is used.

The way of the official code: every operation is dense, and hidden sites are multiplied away after each convolution and
pooling; norms gather the visible sites. `active [B, 1, f, f]` is true where a patch is visible; None: intact images.
The tests compare ours with it (`tests/methods/test_spark.py`), `tools/benchmark.py` the time that either takes.
"""

import torch
import torch.nn.functional as F

ENCODER = "sparse_encoder.sp_cnn."


def _conv_shapes(name, outputs, inputs, size, bias=False):
    return {f"{name}.weight": (outputs, inputs, size, size)} | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm_shapes(name, width, running=False):
    kinds = ("weight", "bias", "running_mean", "running_var") if running else ("weight", "bias")
    return {f"{name}.{kind}": (width,) for kind in kinds}


def resnet_shapes(stem, depths, widths, prefix=ENCODER):
    """Names and shapes of a ResNet of bottleneck blocks."""
    shapes = _conv_shapes("conv1", stem, 3, 7) | _norm_shapes("bn1", stem, True)
    inputs = stem
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            sizes = ((width, inputs, 1), (width, width, 3), (4 * width, width, 1))
            for number, size in enumerate(sizes, 1):
                shapes |= _conv_shapes(f"{name}.conv{number}", *size)
                shapes |= _norm_shapes(f"{name}.bn{number}", size[0], True)
            if block == 0:
                shapes |= _conv_shapes(f"{name}.downsample.0", 4 * width, inputs, 1)
                shapes |= _norm_shapes(f"{name}.downsample.1", 4 * width, True)
            inputs = 4 * width
    return {prefix + name: shape for name, shape in shapes.items()}


def convnext_shapes(depths, widths, prefix=ENCODER):
    """Names and shapes of a ConvNeXt without its last norm."""
    shapes = _conv_shapes("downsample_layers.0.0", widths[0], 3, 4, True)
    shapes |= _norm_shapes("downsample_layers.0.1", widths[0])
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        if stage:
            shapes |= _norm_shapes(f"downsample_layers.{stage}.0", widths[stage - 1])
            shapes |= _conv_shapes(f"downsample_layers.{stage}.1", width, widths[stage - 1], 2, True)
        for block in range(depth):
            name = f"stages.{stage}.{block}"
            shapes |= {f"{name}.gamma": (width,)} | _conv_shapes(f"{name}.dwconv", width, 1, 7, True)
            shapes |= _norm_shapes(f"{name}.norm", width)
            shapes |= {f"{name}.pwconv1.weight": (4 * width, width), f"{name}.pwconv1.bias": (4 * width,)}
            shapes |= {f"{name}.pwconv2.weight": (width, 4 * width), f"{name}.pwconv2.bias": (width,)}
    return {prefix + name: shape for name, shape in shapes.items()}


def rest_shapes(stage_widths, width, running, blocks=5):
    """Names and shapes of densify layers and decoder, for the stages' channels and the decoder's `width`."""
    shapes = {}
    for level, channels in enumerate(reversed(stage_widths)):
        shapes[f"mask_tokens.{level}"] = (1, channels, 1, 1)
        shapes |= _norm_shapes(f"densify_norms.{level}", channels, running)
        if level or channels != width:
            shapes |= _conv_shapes(f"densify_projs.{level}", width // 2**level, channels, 3 if level else 1, True)
    for block in range(blocks):
        name, inner = f"dense_decoder.dec.{block}", width // 2**block
        shapes |= _conv_shapes(f"{name}.up_sample", inner, inner, 4, True)
        for index, outputs in ((0, inner), (3, inner // 2)):
            shapes |= _conv_shapes(f"{name}.conv.{index}", outputs, inner, 3)
            shapes |= _norm_shapes(f"{name}.conv.{index + 1}", outputs, True)
    return shapes | _conv_shapes("dense_decoder.proj", 3, width // 2**blocks, 1, True)


def random_state(shapes, seed=0):
    """A state_dict of normal numbers, weights scaled so that every layer matters."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            state[name] = 0.5 + values.square()
        elif len(shape) == 1:
            state[name] = 0.5 * values + float(name.endswith("weight"))
        else:
            state[name] = 1.4 * values / (values.numel() / shape[0]) ** 0.5
    return state


def trainable(state):
    """The same state with gradients wanted of everything but running statistics."""
    return {name: x.clone().requires_grad_("running" not in name) for name, x in state.items()}


def spread(active, size):
    """`active` at the sites of a map of `size` x `size`."""
    factor = size // active.shape[-1]
    return active.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def conv(state, name, x, active=None, **options):
    """A convolution, and zeros at hidden sites of what it gives."""
    x = F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)
    return x if active is None else x * spread(active, x.shape[2])


def batch_norm(state, name, x, active=None, train=True):
    """Over visible sites; with `train` the running statistics in `state` change in place."""
    sites = x.permute(0, 2, 3, 1)
    chosen = torch.ones_like(sites[..., 0], dtype=torch.bool) if active is None else spread(active, x.shape[2])[:, 0]
    mean, var, weight, bias = (state[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
    normed = torch.zeros_like(sites)
    normed[chosen] = F.batch_norm(sites[chosen], mean, var, weight, bias, train, 0.1, 1e-5)
    return normed.permute(0, 3, 1, 2)


def layer_norm(state, name, x, active=None):
    """Over channels, at visible sites."""
    sites = x.permute(0, 2, 3, 1)
    normed = F.layer_norm(sites, sites.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)
    normed = normed.permute(0, 3, 1, 2)
    return normed if active is None else normed * spread(active, x.shape[2])


def _count(state, prefix):
    """How many blocks are called `prefix.0`, `prefix.1`, ..."""
    return len({name[len(prefix) + 1 :].split(".")[0] for name in state if name.startswith(f"{prefix}.")})


def resnet(state, x, active=None, train=True, prefix=ENCODER):
    """The maps of all stages."""
    x = F.relu(
        batch_norm(state, f"{prefix}bn1", conv(state, f"{prefix}conv1", x, active, stride=2, padding=3), active, train)
    )
    x = F.max_pool2d(x, 3, 2, 1)
    x = x if active is None else x * spread(active, x.shape[2])
    maps = []
    for stage in (1, 2, 3, 4):
        for block in range(_count(state, f"{prefix}layer{stage}")):
            name = f"{prefix}layer{stage}.{block}"
            stride = 2 if block == 0 and stage > 1 else 1
            y = F.relu(batch_norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x, active), active, train))
            y = conv(state, f"{name}.conv2", y, active, stride=stride, padding=1)
            y = F.relu(batch_norm(state, f"{name}.bn2", y, active, train))
            y = batch_norm(state, f"{name}.bn3", conv(state, f"{name}.conv3", y, active), active, train)
            if block == 0:
                x = conv(state, f"{name}.downsample.0", x, active, stride=stride)
                x = batch_norm(state, f"{name}.downsample.1", x, active, train)
            x = F.relu(x + y)
        maps.append(x)
    return maps


def convnext(state, x, active=None, train=True, prefix=ENCODER):
    """The maps of all stages."""
    maps = []
    for stage in range(4):
        name = f"{prefix}downsample_layers.{stage}"
        if stage == 0:
            x = layer_norm(state, f"{name}.1", conv(state, f"{name}.0", x, active, stride=4), active)
        else:
            x = conv(state, f"{name}.1", layer_norm(state, f"{name}.0", x, active), active, stride=2)
        for block in range(_count(state, f"{prefix}stages.{stage}")):
            name = f"{prefix}stages.{stage}.{block}"
            y = conv(state, f"{name}.dwconv", x, active, padding=3, groups=x.shape[1])
            y = layer_norm(state, f"{name}.norm", y, active).permute(0, 2, 3, 1)
            y = F.gelu(F.linear(y, state[f"{name}.pwconv1.weight"], state[f"{name}.pwconv1.bias"]))
            y = F.linear(y, state[f"{name}.pwconv2.weight"], state[f"{name}.pwconv2.bias"])
            y = (state[f"{name}.gamma"] * y).permute(0, 3, 1, 2)
            x = x + (y if active is None else y * spread(active, y.shape[2]))
        maps.append(x)
    return maps


def densify(state, maps, active, norm, train=True):
    """Dense maps of the decoder's widths, from the smallest to the largest."""
    dense = []
    for level, x in enumerate(reversed(maps)):
        options = {"train": train} if norm is batch_norm else {}
        x = norm(state, f"densify_norms.{level}", x, active, **options)
        x = torch.where(spread(active, x.shape[2]), x, state[f"mask_tokens.{level}"].expand_as(x))
        name = f"densify_projs.{level}"
        dense.append(conv(state, name, x, padding=int(level > 0)) if f"{name}.weight" in state else x)
    return dense


def decode(state, dense, train=True):
    """Images."""
    x = 0
    for block in range(_count(state, "dense_decoder.dec")):
        x = x + dense[block] if block < len(dense) else x
        name = f"dense_decoder.dec.{block}"
        x = F.conv_transpose2d(x, state[f"{name}.up_sample.weight"], state[f"{name}.up_sample.bias"], 2, 1)
        x = F.relu6(batch_norm(state, f"{name}.conv.1", conv(state, f"{name}.conv.0", x, padding=1), None, train))
        x = batch_norm(state, f"{name}.conv.4", conv(state, f"{name}.conv.3", x, padding=1), None, train)
    return conv(state, "dense_decoder.proj", x)


def patchify(images, size):
    """`[B, N, size * size * C]`, the channel fastest."""
    batch, channels, height, width = images.shape
    x = images.reshape(batch, channels, height // size, size, width // size, size)
    return torch.einsum("bchpwq->bhwpqc", x).reshape(batch, -1, size * size * channels)


def reconstruction_loss(images, prediction, active, size):
    """The loss for predicted images; targets are normalised patch by patch."""
    target, prediction = patchify(images, size), patchify(prediction, size)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    hidden = (~active).flatten(1).float()
    return ((prediction - target).square().mean(-1) * hidden).sum() / (hidden.sum() + 1e-8)


def spark(state, images, active, network, size=32):
    """Predicted images and the loss of `network` (`resnet` or `convnext`), in training."""
    maps = network(state, images * spread(active, images.shape[2]), active)
    dense = densify(state, maps, active, batch_norm if network is resnet else layer_norm)
    prediction = decode(state, dense)
    return prediction, reconstruction_loss(images, prediction, active, size)
