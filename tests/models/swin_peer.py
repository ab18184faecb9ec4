"""SimMIM with a Swin Transformer in PyTorch, written from the method sheet under the official names.

Windows are not cut: every block attends over the whole map with logits that say which tokens share a window. Nothing
is shared with the package.
"""

import math

import torch
import torch.nn.functional as F

# 24 pixels in patches of 2: a map of 12x12 tokens in shifted windows of 6, then one of 6x6, which is one window.
IMAGE, PATCH, WIDTH, DEPTHS, HEADS, WINDOW = 24, 2, 8, (2, 4), (2, 4), 6
STRIDE = PATCH * 2 ** (len(DEPTHS) - 1)
MODEL = dict(backbone="swin", patch_size=PATCH, width=WIDTH, depths=DEPTHS, heads=HEADS, window=WINDOW)
CONFIG = dict(method="simmim", image_size=IMAGE, mask_patch_size=STRIDE, model=MODEL)


def _linear_shapes(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm_shapes(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _block_shapes(name, width, heads, window):
    return {
        **_norm_shapes(f"{name}.norm1", width),
        f"{name}.attn.relative_position_bias_table": ((2 * window - 1) ** 2, heads),
        **_linear_shapes(f"{name}.attn.qkv", 3 * width, width),
        **_linear_shapes(f"{name}.attn.proj", width, width),
        **_norm_shapes(f"{name}.norm2", width),
        **_linear_shapes(f"{name}.mlp.fc1", 4 * width, width),
        **_linear_shapes(f"{name}.mlp.fc2", width, 4 * width),
    }


def _encoder_shapes(prefix, window):
    shapes = {
        f"{prefix}patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        f"{prefix}patch_embed.proj.bias": (WIDTH,),
        **_norm_shapes(f"{prefix}patch_embed.norm", WIDTH),
    }
    width, side = WIDTH, IMAGE // PATCH
    for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        if stage:
            downsample = f"{prefix}layers.{stage - 1}.downsample"
            shapes |= _norm_shapes(f"{downsample}.norm", 4 * width)
            shapes[f"{downsample}.reduction.weight"] = (2 * width, 4 * width)
            width, side = 2 * width, side // 2
        for block in range(depth):
            shapes |= _block_shapes(f"{prefix}layers.{stage}.blocks.{block}", width, heads, min(window, side))
    return shapes | _norm_shapes(f"{prefix}norm", width)


def random_state(shapes, seed=0):
    """Normal numbers, weights scaled so that every layer matters."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name, shape):
        scale = 0.5 if len(shape) < 2 or name.endswith("table") else 1.5 / math.sqrt(math.prod(shape[1:]))
        is_norm = name.endswith(".weight") and len(shape) == 1
        return scale * torch.randn(shape, generator=generator) + float(is_norm)

    return {name: draw(name, shape) for name, shape in shapes.items()}


def pretrained_state():
    """A pre-training checkpoint without its buffers."""
    shapes = {"encoder.mask_token": (1, 1, WIDTH), **_encoder_shapes("encoder.", WINDOW)}
    shapes |= {"decoder.0.weight": (STRIDE**2 * 3, 2 * WIDTH, 1, 1), "decoder.0.bias": (STRIDE**2 * 3,)}
    return random_state(shapes)


def finetuned_state(classes):
    """A fine-tuned checkpoint without its buffers."""
    return random_state(_encoder_shapes("", WINDOW) | _linear_shapes("head", classes, 2 * WIDTH))


def buffers(prefix):
    """Constants that official checkpoints hold beside the weights, of the right names and kinds."""
    index = {
        f"{prefix}layers.{stage}.blocks.{block}.attn.relative_position_index": torch.zeros(36, 36, dtype=torch.int64)
        for stage, depth in enumerate(DEPTHS)
        for block in range(depth)
    }
    return index | {f"{prefix}layers.0.blocks.1.attn_mask": torch.zeros(4, 36, 36)}


def _norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def _linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def _logit_bias(table, side, window, shift):
    """`[heads, N, N]` for a map of `side` x `side` tokens: -inf for tokens of different windows."""
    rolled = (torch.arange(side) - shift) % side  # where a row or column stands after the cyclic shift
    rows, columns = (x.flatten() for x in torch.meshgrid(rolled, rolled, indexing="ij"))

    def region(x):
        return (x >= side - window).long() + (x >= side - shift).long() if shift else torch.zeros_like(x)

    def apart(x):
        return x[:, None] != x[None, :]

    dy, dx = ((x[:, None] - x[None, :]).clamp(1 - window, window - 1) + window - 1 for x in (rows, columns))
    bias = table[dy * (2 * window - 1) + dx].permute(2, 0, 1)
    bias = bias - 100.0 * apart(3 * region(rows) + region(columns))
    return bias.masked_fill(apart(rows // window * side + columns // window), -torch.inf)


def _attention(state, name, x, heads, bias):
    batch, count, width = x.shape
    qkv = _linear(state, f"{name}.qkv", x).reshape(batch, count, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (q * (width // heads) ** -0.5 @ k.transpose(2, 3) + bias).softmax(-1)
    return _linear(state, f"{name}.proj", (weights @ v).transpose(1, 2).reshape(batch, count, width))


def _merge(state, name, x):
    batch, count, width = x.shape
    side = math.isqrt(count)
    x = x.reshape(batch, side, side, width)
    x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
    return _linear(state, f"{name}.reduction", _norm(state, f"{name}.norm", x.reshape(batch, -1, 4 * width)))


def encode(state, images, hidden=None, prefix="encoder."):
    """Steps 2 and 3 for Swin: `[B, N, 2 * WIDTH]`; `hidden [B, M]` bool over patches."""
    embed = f"{prefix}patch_embed.proj"
    x = F.conv2d(images, state[f"{embed}.weight"], state[f"{embed}.bias"], stride=PATCH).flatten(2).transpose(1, 2)
    x = _norm(state, f"{prefix}patch_embed.norm", x)
    if hidden is not None:
        w = hidden.float()[..., None]
        x = x * (1 - w) + state[f"{prefix}mask_token"] * w
    for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        side = math.isqrt(x.shape[1])
        for number in range(depth):
            name = f"{prefix}layers.{stage}.blocks.{number}"
            window = min(WINDOW, side)
            shift = window // 2 if number % 2 and side > window else 0
            bias = _logit_bias(state[f"{name}.attn.relative_position_bias_table"], side, window, shift)
            x = x + _attention(state, f"{name}.attn", _norm(state, f"{name}.norm1", x), heads, bias)
            inner = F.gelu(_linear(state, f"{name}.mlp.fc1", _norm(state, f"{name}.norm2", x)))
            x = x + _linear(state, f"{name}.mlp.fc2", inner)
        if stage < len(DEPTHS) - 1:
            x = _merge(state, f"{prefix}layers.{stage}.downsample", x)
    return _norm(state, f"{prefix}norm", x)


def simmim(state, images, hidden):
    """Latent, picture `[B, 3, H, W]` and loss."""
    latent = encode(state, images, hidden)
    side = IMAGE // STRIDE
    maps = latent.transpose(1, 2).reshape(len(images), -1, side, side)
    picture = F.pixel_shuffle(F.conv2d(maps, state["decoder.0.weight"], state["decoder.0.bias"]), STRIDE)
    grid = IMAGE // PATCH
    mask = hidden.float().view(-1, 1, grid, grid).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    return latent, picture, ((images - picture).abs() * mask).sum() / (mask.sum() + 1e-5) / 3
