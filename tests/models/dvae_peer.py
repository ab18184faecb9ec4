"""DALL-E's discrete VAE in PyTorch, written from its description, on a state_dict with the official names."""

from __future__ import annotations

import torch.nn.functional as F

from tests.interop.test_official_layouts import random_state


def shapes(kind, width, groups, blocks, num_codes, channels, code_width=8):
    """Of an "encoder" or a "decoder"; `width` is that of the encoder's first group."""
    encodes = kind == "encoder"
    widths = [width * 2**group for group in range(groups)]
    windows = (3, 3, 3, 1) if encodes else (1, 3, 3, 3)
    first, last = (channels, num_codes) if encodes else (num_codes, 2 * channels)
    inputs = widths[0] if encodes else code_width
    found = convolution("blocks.input", first, inputs, 7 if encodes else 1)
    for group, outputs in enumerate(widths if encodes else widths[::-1], 1):
        for block in range(1, blocks + 1):
            name = f"blocks.group_{group}.block_{block}"
            if inputs != outputs:
                found |= convolution(f"{name}.id_path", inputs, outputs, 1)
            channels_in = (inputs, *(outputs // 4,) * 3)
            channels_out = (*(outputs // 4,) * 3, outputs)
            for number in range(4):
                sizes = channels_in[number], channels_out[number], windows[number]
                found |= convolution(f"{name}.res_path.conv_{number + 1}", *sizes)
            inputs = outputs
    return found | convolution("blocks.output.conv", inputs, last, 1)


def convolution(name, inputs, outputs, window):
    return {f"{name}.w": (outputs, inputs, window, window), f"{name}.b": (outputs,)}


def make_state(kind, *sizes, seed=0):
    return random_state(shapes(kind, *sizes), seed)


def convolve(state, name, x):
    kernel = state[f"{name}.w"]
    return F.conv2d(x, kernel, state[f"{name}.b"], padding=(kernel.shape[-1] - 1) // 2)


def run(state, x, groups, blocks, resample):
    gain = 1 / (groups * blocks) ** 2
    x = convolve(state, "blocks.input", x)
    for group in range(1, groups + 1):
        for block in range(1, blocks + 1):
            name = f"blocks.group_{group}.block_{block}"
            branch = x
            for number in range(1, 5):
                branch = convolve(state, f"{name}.res_path.conv_{number}", branch.relu())
            x = convolve(state, f"{name}.id_path", x) if f"{name}.id_path.w" in state else x
            x = x + gain * branch
        if group < groups:
            x = resample(x)
    return convolve(state, "blocks.output.conv", x.relu())


def encode(state, pixels, groups, blocks):
    """Logits `[B, codes, h, w]` of pixels `[B, C, H, W]` in [0, 1]."""
    return run(state, 0.8 * pixels + 0.1, groups, blocks, lambda x: F.max_pool2d(x, 2))


def decode(state, codes, groups, blocks):
    """`[B, 2 C, H, W]` of weights of tokens `[B, codes, h, w]`."""
    return run(state, codes, groups, blocks, lambda x: F.interpolate(x, scale_factor=2, mode="nearest"))
