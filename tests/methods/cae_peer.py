"""Both versions of CAE in PyTorch, written from the method sheet, on a state_dict with the official names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.interop import test_official_layouts as official
from tests.interop.test_official_layouts import linear, linear_shapes, norm, norm_shapes

WIDTH, HEADS, GRID, TOKENS = official.WIDTH, official.HEADS, official.GRID, official.TOKENS


def rows_first(width):
    """Class row and table of the sheet: sine and cosine of the row, then of the column."""
    quarter = width // 4
    rows = [torch.zeros(width, dtype=torch.float64)]
    for position in range(TOKENS):
        angles = [[p * 10000 ** (-k / quarter) for k in range(quarter)] for p in divmod(position, GRID)]
        values = [f(angle) for half in angles for f in (math.sin, math.cos) for angle in half]
        rows.append(torch.tensor(values, dtype=torch.float64))
    return torch.stack(rows).float()[None]


def block_shapes(name, width, inner):
    return {
        **norm_shapes(f"{name}.norm1", width),
        f"{name}.attn.qkv.weight": (3 * inner, width),
        f"{name}.attn.q_bias": (inner,),
        f"{name}.attn.v_bias": (inner,),
        **linear_shapes(f"{name}.attn.proj", width, inner),
        f"{name}.gamma_1": (width,),
        **norm_shapes(f"{name}.norm2", width),
        **linear_shapes(f"{name}.mlp.fc1", 4 * width, width),
        **linear_shapes(f"{name}.mlp.fc2", width, 4 * width),
        f"{name}.gamma_2": (width,),
    }


def regressor_shapes(name, width, inner):
    shapes = {f"{name}.cross_attn.{part}.weight": (inner, width) for part in "qkv"}
    shapes |= {f"{name}.cross_attn.{part}_bias": (inner,) for part in "qv"}
    for part in ("norm1_q", "norm1_k", "norm1_v", "norm2_cross"):
        shapes |= norm_shapes(f"{name}.{part}", width)
    return shapes | {
        **linear_shapes(f"{name}.cross_attn.proj", width, inner),
        f"{name}.gamma_1_cross": (width,),
        **linear_shapes(f"{name}.mlp_cross.fc1", 4 * width, width),
        **linear_shapes(f"{name}.mlp_cross.fc2", width, 4 * width),
        f"{name}.gamma_2_cross": (width,),
    }


def make_state(width, heads, outputs, decoder_depth=2):
    """A whole checkpoint; `width` and `heads` are the regressor's. CAE v2 has no decoder blocks."""
    inner = width // heads * heads
    encoder = {
        "cls_token": (1, 1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, official.PATCH, official.PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        **norm_shapes("norm", WIDTH),
    }
    for layer in range(official.DEPTH):
        encoder |= block_shapes(f"blocks.{layer}", WIDTH, WIDTH)
    shapes = {f"encoder.{name}": shape for name, shape in encoder.items()}
    if width != WIDTH:
        shapes |= linear_shapes("encoder_to_regresser", width, WIDTH) | norm_shapes("encoder_to_regresser_norm", width)
    for layer in range(2):
        shapes |= regressor_shapes(f"regresser.regressor_blocks.{layer}", width, inner)
    for layer in range(decoder_depth):
        shapes |= block_shapes(f"decoder.decoder_blocks.{layer}", width, inner)
    shapes |= norm_shapes("regresser.norm", width) | norm_shapes("decoder.norm", width)
    shapes |= {"mask_token": (1, 1, width), **linear_shapes("decoder.head", outputs, width)}
    state = official.random_state(shapes)
    return state | {"encoder.pos_embed": rows_first(WIDTH), "rd_pos_embed": rows_first(width)}


def alignment_state(state):
    """What a checkpoint of version 1 holds twice."""
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    return {f"alignment_{name}": tensor for name, tensor in encoder.items()}


def chosen(x, mask):
    """Rows of `x [B or 1, N, D]` where `mask [B, N]`, `[B, K, D]`."""
    x = x.expand(len(mask), -1, -1)
    return x[mask].reshape(len(mask), -1, x.shape[-1])


def attend(q, k, v, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q / math.sqrt(q.shape[-1]) @ k.transpose(2, 3)).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def blocks(state, name, x, heads):
    for layer in range(sum(key.startswith(f"{name}.") and key.endswith(".norm1.bias") for key in state)):
        block = f"{name}.{layer}"
        q, k, v = F.linear(norm(state, f"{block}.norm1", x), state[f"{block}.attn.qkv.weight"]).chunk(3, dim=-1)
        y = attend(q + state[f"{block}.attn.q_bias"], k, v + state[f"{block}.attn.v_bias"], heads)
        x = x + state[f"{block}.gamma_1"] * linear(state, f"{block}.attn.proj", y)
        hidden = F.gelu(linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", x)))
        x = x + state[f"{block}.gamma_2"] * linear(state, f"{block}.mlp.fc2", hidden)
    return x


def encode(state, images, seen):
    """`[B, 1 + K, D]` of the patches where `seen [B, N]`."""
    x = chosen(official.embed(state, images, "encoder.") + state["encoder.pos_embed"][:, 1:], seen)
    x = official.with_class_token(state, x, "encoder.")
    return norm(state, "encoder.norm", blocks(state, "encoder.blocks", x, HEADS))


def project(state, x):
    if "encoder_to_regresser.weight" not in state:
        return x
    return norm(state, "encoder_to_regresser_norm", linear(state, "encoder_to_regresser", x))


def regress(state, visible, mask, heads):
    """The stream `[B, M, R]` after the last block."""
    table = state["rd_pos_embed"][:, 1:]
    hidden_positions = chosen(table, mask)
    positions = torch.cat([chosen(table, ~mask), hidden_positions], dim=1)
    q = state["mask_token"].expand(*hidden_positions.shape[:2], -1)
    for layer in range(2):
        block = f"regresser.regressor_blocks.{layer}"
        attention = f"{block}.cross_attn"
        source = torch.cat([visible, q], dim=1)
        y = attend(
            F.linear(norm(state, f"{block}.norm1_q", q + hidden_positions), state[f"{attention}.q.weight"])
            + state[f"{attention}.q_bias"],
            F.linear(norm(state, f"{block}.norm1_k", source + positions), state[f"{attention}.k.weight"]),
            F.linear(norm(state, f"{block}.norm1_v", source), state[f"{attention}.v.weight"])
            + state[f"{attention}.v_bias"],
            heads,
        )
        x = q + state[f"{block}.gamma_1_cross"] * linear(state, f"{attention}.proj", y)
        x = norm(state, f"{block}.norm2_cross", x)
        mlp = linear(state, f"{block}.mlp_cross.fc2", F.gelu(linear(state, f"{block}.mlp_cross.fc1", x)))
        q = x + state[f"{block}.gamma_2_cross"] * mlp
    return q


def cae(state, images, mask, token_ids, heads):
    """Encoder output, predicted and true latents, logits, and both terms of the loss."""
    latent = encode(state, images, ~mask)
    with torch.no_grad():
        aligned = project(state, encode(state, images, mask)[:, 1:])
    regressed = norm(state, "regresser.norm", regress(state, project(state, latent)[:, 1:], mask, heads))
    x = regressed + chosen(state["rd_pos_embed"][:, 1:], mask)
    x = norm(state, "decoder.norm", blocks(state, "decoder.decoder_blocks", x, heads))
    logits = linear(state, "decoder.head", x)
    ce = F.cross_entropy(logits.flatten(0, 1), token_ids[mask])
    return latent, regressed, aligned, logits, ce, F.mse_loss(regressed, aligned)


def cae_v2(state, images, mask, tokens, heads):
    """Predictions `[B, 1 + N, C]` and the loss against a teacher's `tokens` of the intact image."""
    visible = project(state, encode(state, images, ~mask))
    x = torch.cat([visible, regress(state, visible[:, 1:], mask, heads)], dim=1)
    prediction = linear(state, "decoder.head", norm(state, "decoder.norm", x))
    patches = tokens[:, 1:]
    target = torch.cat([tokens[:, :1], chosen(patches, ~mask), chosen(patches, mask)], dim=1)
    distance = 1 - F.cosine_similarity(prediction, target, dim=-1)
    return F.normalize(prediction, dim=-1), F.normalize(target, dim=-1), distance.mean()


def clip_state(width, depth, outputs):
    """CLIP's image encoder under OpenAI's names, and a little of the text encoder."""
    shapes = {
        "visual.conv1.weight": (width, 3, official.PATCH, official.PATCH),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (1 + TOKENS, width),
        **norm_shapes("visual.ln_pre", width),
        **norm_shapes("visual.ln_post", width),
        "visual.proj": (width, outputs),
        "transformer.resblocks.0.ln_1.weight": (8,),
        "logit_scale": (),
    }
    for layer in range(depth):
        block = f"visual.transformer.resblocks.{layer}"
        shapes |= {
            **norm_shapes(f"{block}.ln_1", width),
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            **linear_shapes(f"{block}.attn.out_proj", width, width),
            **norm_shapes(f"{block}.ln_2", width),
            **linear_shapes(f"{block}.mlp.c_fc", 4 * width, width),
            **linear_shapes(f"{block}.mlp.c_proj", width, 4 * width),
        }
    return official.random_state(shapes, seed=5)


def clip(state, images, depth, heads):
    """Projected tokens `[B, 1 + N, C]` of images normalised as CLIP wants them."""

    def layer_norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    x = F.conv2d(images, state["visual.conv1.weight"], stride=official.PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = layer_norm("visual.ln_pre", x + state["visual.positional_embedding"])
    for layer in range(depth):
        block = f"visual.transformer.resblocks.{layer}"
        qkv = F.linear(
            layer_norm(f"{block}.ln_1", x), state[f"{block}.attn.in_proj_weight"], state[f"{block}.attn.in_proj_bias"]
        )
        x = x + linear(state, f"{block}.attn.out_proj", attend(*qkv.chunk(3, dim=-1), heads))
        hidden = linear(state, f"{block}.mlp.c_fc", layer_norm(f"{block}.ln_2", x))
        x = x + linear(state, f"{block}.mlp.c_proj", hidden * torch.sigmoid(1.702 * hidden))
    return layer_norm("visual.ln_post", x) @ state["visual.proj"]
