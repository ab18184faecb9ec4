"""ConvMAE's encoder and MAE's decoder in PyTorch, written from the method sheets in the official checkpoints' layout.

Every spatial operation is dense, as in the official code, and nothing is shared with the package.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

# A small model: 48 pixels in patches of 8, so a grid of 6x6 tokens, 24x24 positions in the first stage, 12x12 in the
# second.
GRID, PATCH, WIDTH, DEPTH, HEADS = 6, 8, 16, 2, 4
STAGES = (8, 12)
DECODER_WIDTH, DECODER_HEADS = 8, 2
TOKENS = GRID * GRID
MODEL = dict(
    backbone="conv_vit",
    patch_size=PATCH,
    width=WIDTH,
    depth=DEPTH,
    heads=HEADS,
    stages=dict(widths=STAGES, depths=(2, 2), mlp_ratios=(2.0, 2.0)),
)


def _linear_shapes(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _conv_shapes(name, outputs, inputs, size):
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def _norm_shapes(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _block_shapes(name, width, ratio):
    return {
        **_norm_shapes(f"{name}.norm1", width),
        **_linear_shapes(f"{name}.attn.qkv", 3 * width, width),
        **_linear_shapes(f"{name}.attn.proj", width, width),
        **_norm_shapes(f"{name}.norm2", width),
        **_linear_shapes(f"{name}.mlp.fc1", ratio * width, width),
        **_linear_shapes(f"{name}.mlp.fc2", width, ratio * width),
    }


def _conv_block_shapes(name, width):
    return {
        **_norm_shapes(f"{name}.norm1", width),
        **_conv_shapes(f"{name}.conv1", width, width, 1),
        **_conv_shapes(f"{name}.attn", width, 1, 5),
        **_conv_shapes(f"{name}.conv2", width, width, 1),
        **_norm_shapes(f"{name}.norm2", width),
        **_conv_shapes(f"{name}.mlp.fc1", 2 * width, width, 1),
        **_conv_shapes(f"{name}.mlp.fc2", width, 2 * width, 1),
    }


def encoder_shapes(fusion=True):
    """Names and shapes of the encoder without its position table."""
    shapes = {}
    for number, (outputs, inputs, size) in enumerate(((8, 3, PATCH // 4), (12, 8, 2), (WIDTH, 12, 2)), 1):
        shapes |= _conv_shapes(f"patch_embed{number}.proj", outputs, inputs, size)
        shapes |= _norm_shapes(f"patch_embed{number}.norm", outputs)
    shapes |= _linear_shapes("patch_embed4", WIDTH, WIDTH)
    for number, (width, size) in enumerate(zip(STAGES, (4, 2), strict=True), 1):
        if fusion:
            shapes |= _conv_shapes(f"stage{number}_output_decode", WIDTH, width, size)
        for layer in range(2):
            shapes |= _conv_block_shapes(f"blocks{number}.{layer}", width)
    for layer in range(DEPTH):
        shapes |= _block_shapes(f"blocks3.{layer}", WIDTH, 4)
    return shapes | _norm_shapes("norm", WIDTH)


def decoder_shapes(output, ratio):
    """Names and shapes of a decoder of one block without its position table."""
    return {
        "mask_token": (1, 1, DECODER_WIDTH),
        **_linear_shapes("decoder_embed", DECODER_WIDTH, WIDTH),
        **_block_shapes("decoder_blocks.0", DECODER_WIDTH, ratio),
        **_norm_shapes("decoder_norm", DECODER_WIDTH),
        **_linear_shapes("decoder_pred", output, DECODER_WIDTH),
    }


def random_state(shapes, seed=0):
    """A state_dict of normal numbers, weights scaled so that every layer matters; and both position tables."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        scale = 0.5 if len(shape) < 2 else 1.5 / math.sqrt(math.prod(shape[1:]))
        is_norm = "norm" in name and name.endswith("weight")
        state[name] = scale * torch.randn(shape, generator=generator) + float(is_norm)
    return state


def tables():
    """The fixed position tables of encoder and decoder, without a class token's row."""
    return {"pos_embed": sincos(WIDTH), "decoder_pos_embed": sincos(DECODER_WIDTH)}


def sincos(width):
    """The first half of the channels encodes the column, the second half the row."""
    quarter = width // 4
    rows = []
    for row in range(GRID):
        for column in range(GRID):
            angles = [[position / 10000 ** (k / quarter) for k in range(quarter)] for position in (column, row)]
            rows.append([f(angle) for half in angles for f in (math.sin, math.cos) for angle in half])
    return torch.tensor(rows, dtype=torch.float64).float()[None]


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(state, name, x, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def _conv(state, name, x, **options):
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)


def _channel_norm(state, name, x):
    return norm(state, name, x.permute(0, 2, 3, 1), 1e-5).permute(0, 3, 1, 2)


def _patch_embed(state, name, x):
    size = state[f"{name}.proj.weight"].shape[-1]
    return F.gelu(_channel_norm(state, f"{name}.norm", _conv(state, f"{name}.proj", x, stride=size)))


def _conv_block(state, name, x, visible):
    h = _conv(state, f"{name}.conv1", _channel_norm(state, f"{name}.norm1", x))
    convolve = lambda h: _conv(state, f"{name}.attn", h, padding=2, groups=h.shape[1])
    if isinstance(visible, tuple):  # FastConvMAE
        h = sum(view * convolve(view * h) for view in visible)
    else:
        h = convolve(h if visible is None else visible * h)
    x = x + _conv(state, f"{name}.conv2", h)
    h = F.gelu(_conv(state, f"{name}.mlp.fc1", _channel_norm(state, f"{name}.norm2", x)))
    return x + _conv(state, f"{name}.mlp.fc2", h)


def _attention(state, name, x, heads):
    batch, count, width = x.shape
    q, k, v = linear(state, f"{name}.qkv", x).split(width, dim=-1)
    q, k, v = (part.view(batch, count, heads, -1).transpose(1, 2) for part in (q, k, v))
    weights = ((q / math.sqrt(width // heads)) @ k.transpose(2, 3)).softmax(-1)
    return linear(state, f"{name}.proj", (weights @ v).transpose(1, 2).reshape(batch, count, width))


def _blocks(state, name, x, heads):
    for layer in range(sum(key.startswith(f"{name}.") and key.endswith(".norm1.bias") for key in state)):
        block = f"{name}.{layer}"
        x = x + _attention(state, f"{block}.attn", norm(state, f"{block}.norm1", x), heads)
        hidden = F.gelu(linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", x)))
        x = x + linear(state, f"{block}.mlp.fc2", hidden)
    return x


def gather(x, ids):
    """Rows `ids [B, K]` of `x [B, N, D]`."""
    return torch.gather(x, 1, ids[:, :, None].expand(-1, -1, x.shape[2]))


def encode(state, images, mask=None, ids=None, views=1, complementary=False):
    """Latent of `images [B, 3, H, W]`; `mask [V B, N]` is 1 where hidden, `ids [V B, K]` what is kept, view-major.

    With `complementary` the views share their maps, as in FastConvMAE.
    """
    visible = [None, None]
    if mask is not None:
        grid = 1 - mask.float().view(-1, 1, GRID, GRID)
        visible = [F.interpolate(grid, scale_factor=factor, mode="nearest") for factor in (4, 2)]
        if complementary:
            visible = [grid.chunk(views) for grid in visible]
    x = _patch_embed(state, "patch_embed1", images).repeat(1 if complementary else views, 1, 1, 1)
    sides = []
    for number in (1, 2):
        if number == 2:
            x = _patch_embed(state, "patch_embed2", x)
        for layer in range(2):
            x = _conv_block(state, f"blocks{number}.{layer}", x, visible[number - 1])
        if "stage1_output_decode.weight" in state:
            name = f"stage{number}_output_decode"
            sides.append(_conv(state, name, x, stride=state[f"{name}.weight"].shape[-1]).flatten(2).transpose(1, 2))
    x = _patch_embed(state, "patch_embed3", x).flatten(2).transpose(1, 2)
    x = linear(state, "patch_embed4", x) + state["pos_embed"]
    if complementary:
        x, sides = x.repeat(views, 1, 1), [side.repeat(views, 1, 1) for side in sides]
    if ids is not None:
        x, sides = gather(x, ids), [gather(side, ids) for side in sides]
    x = sum(sides, _blocks(state, "blocks3", x, HEADS))
    return norm(state, "norm", x) if "norm.weight" in state else x


def decode(state, latent, ids_restore):
    """Predictions for all patches."""
    x = linear(state, "decoder_embed", latent)
    masks = state["mask_token"].expand(len(x), TOKENS - x.shape[1], -1)
    x = gather(torch.cat([x, masks], dim=1), ids_restore) + state["decoder_pos_embed"]
    x = norm(state, "decoder_norm", _blocks(state, "decoder_blocks", x, DECODER_HEADS))
    return linear(state, "decoder_pred", x)


def assert_equal(ours, theirs, tolerance=1e-5):
    """Within `tolerance` of the largest number."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()
