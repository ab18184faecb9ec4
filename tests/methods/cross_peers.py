"""CropMAE and CroCo in PyTorch, with the names of the official checkpoints; written from the papers' descriptions."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mim_jax.layers.position import sincos_table

PATCH, SIDE, CHANNELS = 4, 16, 3
GRID = (SIDE // PATCH, SIDE // PATCH)
TOKENS = GRID[0] * GRID[1]


def randomised(model: nn.Module) -> nn.Module:
    """Every trained parameter normal and of order one after its layer, so that no term is negligible."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.5 if parameter.ndim < 2 else 1.5 / np.sqrt(parameter[0].numel())
            parameter.data = noise * scale + float("norm" in name and name.endswith("weight"))
    return model.eval()


def rotate(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """RoPE with base 100 of `x [B, H, N, Dh]`, whose tokens are the patches `ids [B, N]` of the grid."""

    def turn(half: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        width = half.shape[-1]
        frequencies = 1.0 / 100.0 ** (torch.arange(0, width, 2).float() / width)
        angles = position[:, None, :, None].float() * torch.cat([frequencies, frequencies])
        first, second = half.chunk(2, dim=-1)
        return half * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()

    rows, columns = x.chunk(2, dim=-1)
    return torch.cat([turn(rows, ids // GRID[1]), turn(columns, ids % GRID[1])], dim=-1)


def attend(query, key, value, heads, ids=None, memory_ids=None):
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    if ids is not None:
        query, key = rotate(query, ids), rotate(key, memory_ids)
    weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, ids=None):
        return self.proj(attend(*self.qkv(x).chunk(3, dim=-1), self.heads, ids, ids))


class CrossAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.projq, self.projk, self.projv, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x, memory, ids=None, memory_ids=None):
        projected = self.projq(x), self.projk(memory), self.projv(memory)
        return self.proj(attend(*projected, self.heads, ids, memory_ids))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


def norm(width):
    return nn.LayerNorm(width, eps=1e-6)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attn, self.mlp = Attention(width, heads), Mlp(width)

    def forward(self, x, ids=None):
        x = x + self.attn(self.norm1(x), ids)
        return x + self.mlp(self.norm2(x))


class CropBlock(nn.Module):
    """torch's TransformerDecoderLayer, post-norm, in the order cross-attention, MLP, self-attention."""

    def __init__(self, width, heads, hidden):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2, self.norm3 = norm(width), norm(width), norm(width)

    def forward(self, x, memory):
        x = self.norm2(x + self.multihead_attn(x, memory, memory, need_weights=False)[0])
        x = self.norm3(x + self.linear2(F.gelu(self.linear1(x))))
        return self.norm1(x + self.self_attn(x, x, x, need_weights=False)[0])


class CrossBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2, self.norm3, self.norm_y = (norm(width) for _ in range(4))
        self.attn, self.cross_attn, self.mlp = Attention(width, heads), CrossAttention(width, heads), Mlp(width)

    def forward(self, x, memory, ids=None):
        x = x + self.attn(self.norm1(x), ids)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(memory), ids, ids)
        return x + self.mlp(self.norm3(x))


class PatchEmbed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Conv2d(CHANNELS, width, PATCH, PATCH)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)


def fixed_table(width, class_row):
    table = np.pad(sincos_table(GRID, width), ((int(class_row), 0), (0, 0)))
    return nn.Parameter(torch.tensor(table), requires_grad=False)


def take(x, ids):
    return x.gather(1, ids[:, :, None].expand(-1, -1, x.shape[2]))


def patches_of(images):
    batch = images.shape[0]
    cut = images.reshape(batch, CHANNELS, GRID[0], PATCH, GRID[1], PATCH)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, TOKENS, -1)


def masked_loss(images, prediction, mask):
    target = patches_of(images)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    error = (prediction - target).square().mean(-1)
    return (error * mask).sum() / mask.sum()


class CropMAE(nn.Module):
    """Encoder with a class token, shared by both crops; the masked one is the second."""

    def __init__(self, width=16, depth=2, heads=2, decoder_width=8, decoder_depth=2, decoder_heads=2, hidden=24):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(fixed_table(width, True).data[None], requires_grad=False)
        self.patch_embed = PatchEmbed(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = norm(width)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(fixed_table(decoder_width, True).data[None], requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            CropBlock(decoder_width, decoder_heads, hidden) for _ in range(decoder_depth)
        )
        self.decoder_norm = norm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, PATCH * PATCH * CHANNELS)

    def encode(self, images, ids=None):
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        x = x if ids is None else take(x, ids)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, reference, images, noise, keep):
        shuffle = noise.argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        memory = self.decoder_embed(self.encode(reference))
        latent = self.encode(images, shuffle[:, :keep])
        x = self.decoder_embed(latent)
        hidden = self.mask_token.expand(len(x), TOKENS - keep, -1)
        x = torch.cat([x[:, :1], take(torch.cat([x[:, 1:], hidden], dim=1), restore)], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x, memory)
        prediction = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        return masked_loss(images, prediction, (restore >= keep).float()), prediction, latent


class CroCo(nn.Module):
    """The first view is masked; `rope` is version 2."""

    def __init__(self, rope, width=16, depth=2, heads=2, decoder_width=16, decoder_depth=2, decoder_heads=2):
        super().__init__()
        self.rope = rope
        if not rope:
            self.register_buffer("enc_pos_embed", fixed_table(width, False).data)
            self.register_buffer("dec_pos_embed", fixed_table(decoder_width, False).data)
        self.patch_embed = PatchEmbed(width)
        self.enc_blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.enc_norm = norm(width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.dec_blocks = nn.ModuleList(CrossBlock(decoder_width, decoder_heads) for _ in range(decoder_depth))
        self.dec_norm = norm(decoder_width)
        self.prediction_head = nn.Linear(decoder_width, PATCH * PATCH * CHANNELS)

    def encode(self, images, mask=None):
        x = self.patch_embed(images)
        batch = len(x)
        ids = torch.arange(TOKENS).expand(batch, -1)
        if not self.rope:
            x = x + self.enc_pos_embed
        if mask is not None:
            x, ids = x[~mask].view(batch, -1, x.shape[2]), ids[~mask].view(batch, -1)
        for block in self.enc_blocks:
            x = block(x, ids if self.rope else None)
        return self.enc_norm(x)

    def decode(self, latent, reference, mask=None):
        visible, memory = self.decoder_embed(latent), self.decoder_embed(reference)
        x = visible
        if mask is not None:
            x = self.mask_token.expand(len(visible), TOKENS, -1).clone()
            x[~mask] = visible.reshape(-1, visible.shape[2])
        if not self.rope:
            x, memory = x + self.dec_pos_embed, memory + self.dec_pos_embed
        ids = torch.arange(TOKENS).expand(len(x), -1) if self.rope else None
        for block in self.dec_blocks:
            x = block(x, memory, ids)
        return self.prediction_head(self.dec_norm(x))

    def forward(self, images, reference, mask):
        latent = self.encode(images, mask)
        prediction = self.decode(latent, self.encode(reference), mask)
        return masked_loss(images, prediction, mask.float()), prediction, latent
