"""A masked autoencoder in PyTorch with every block's output, under the names of facebookresearch/mae."""

import torch

from tests.interop import test_official_layouts as official

HEADS, DECODER_HEADS = 4, 2
TOKENS = official.TOKENS


def mae_state(width, depth, decoder_width, decoder_depth, seed=0):
    """A random state_dict of images of 16 pixels in patches of 4."""
    patch = official.PATCH
    shapes = {
        "cls_token": (1, 1, width),
        "mask_token": (1, 1, decoder_width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **official.norm_shapes("norm", width),
        **official.linear_shapes("decoder_embed", decoder_width, width),
        **official.norm_shapes("decoder_norm", decoder_width),
        **official.linear_shapes("decoder_pred", patch * patch * 3, decoder_width),
    }
    for layer in range(depth):
        shapes |= official.block_shapes(f"blocks.{layer}", width)
    for layer in range(decoder_depth):
        shapes |= official.block_shapes(f"decoder_blocks.{layer}", decoder_width)
    tables = {"pos_embed": official.sincos(width, True), "decoder_pos_embed": official.sincos(decoder_width, True)}
    return official.random_state(shapes, seed) | tables


def encode(state, images, order, keep):
    """Every block's output for the first `keep` patches of `order`, before the final norm."""
    x = official.gather(official.embed(state, images) + state["pos_embed"][:, 1:], order[:, :keep])
    token = (state["cls_token"] + state["pos_embed"][:, :1]).expand(len(images), -1, -1)
    return _layers(state, "blocks", torch.cat([token, x], dim=1), HEADS)


def decode(state, latent, order):
    """Every decoder block's output for all tokens in raster order."""
    y = official.linear(state, "decoder_embed", latent)
    masks = state["mask_token"].expand(len(y), TOKENS + 1 - y.shape[1], -1)
    tokens = official.gather(torch.cat([y[:, 1:], masks], dim=1), order.argsort(dim=1))
    return _layers(
        state, "decoder_blocks", torch.cat([y[:, :1], tokens], dim=1) + state["decoder_pos_embed"], DECODER_HEADS
    )


def _layers(state, name, x, heads):
    outputs = []
    while any(key.startswith(f"{name}.{len(outputs)}.") for key in state):
        prefix = f"{name}.{len(outputs)}."
        block = {f"block.0.{k.removeprefix(prefix)}": v for k, v in state.items() if k.startswith(prefix)}
        x = official.blocks(block, "block", x, heads)
        outputs.append(x)
    return outputs


def under(prefix, state):
    """The state with a prefix before every name."""
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}
