"""Panels of pictures: original, masked image and reconstruction under each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROWS = ("original", "masked", "reconstruction")
GREY = 0.5  # of hidden patches
COLUMNS = 8  # images side by side; more continue below

_CELL = 128  # pixels a small image is enlarged to, at most about
_GAP, _MARGIN, _BLOCK_GAP = 6, 16, 20
_BACKGROUND, _INK, _FAINT = (255, 255, 255), (32, 32, 32), (110, 110, 110)


def upscale_factor(height: int, width: int) -> int:
    """The whole number of screen pixels per image pixel at which a small image can be looked at."""
    return max(1, round(_CELL / max(height, width)))


def to_rgb(images: np.ndarray) -> np.ndarray:
    """uint8 `[B, H, W, 3]` of `images [B, H, W, C]` in [0, 1]: the first three channels, or the first as grey."""
    channels = images[..., :3] if images.shape[-1] >= 3 else np.repeat(images[..., :1], 3, axis=-1)
    return np.round(255.0 * np.clip(channels, 0.0, 1.0)).astype(np.uint8)


def shade_hidden(masked: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """`masked [B, H, W, C]` with grey where `hidden [B, H, W]` is true."""
    return np.where(hidden[..., None], np.float32(GREY), masked)


def draw_panel(
    pictures: Mapping[str, np.ndarray], *, titles: Sequence[str] | None = None, caption: str = ""
) -> Image.Image:
    """One labelled picture of `original`, `masked` and `reconstruction`, each `[B, H, W, C]` in [0, 1].

    Args:
      pictures: the three rows. Every image becomes a column; after eight columns a new block of rows begins.
      titles: a word for each image, such as its class.
      caption: a line on top.

    Returns:
      An RGB image in which each image pixel is a square of `upscale_factor(H, W)` screen pixels.
    """
    rows = {name: to_rgb(pictures[name]) for name in ROWS}
    count, height, width, _ = rows[ROWS[0]].shape
    factor = upscale_factor(height, width)
    layout = _Layout(count, height * factor, width * factor, caption, titles is not None)
    panel = Image.new("RGB", layout.size, _BACKGROUND)
    draw = ImageDraw.Draw(panel)
    if caption:
        draw.text((layout.left, _MARGIN), caption, _INK, font=layout.font)
    for row, (name, images) in enumerate(rows.items()):
        for block in range(layout.blocks):
            x, y = layout.corner(block * COLUMNS, row)
            draw.text((x - 10, y + layout.cell[0] / 2), name, _INK, font=layout.font, anchor="rm")
        for number, image in enumerate(images):
            enlarged = Image.fromarray(image).resize(layout.cell[::-1], Image.Resampling.NEAREST)
            panel.paste(enlarged, layout.corner(number, row))
    for number, title in enumerate(titles or ()):
        x, y = layout.corner(number, 0)
        text = _shortened(title, layout.cell[1], layout.small)
        draw.text((x + layout.cell[1] / 2, y - 5), text, _FAINT, font=layout.small, anchor="ms")
    return panel


class _Layout:
    """Where everything stands, in screen pixels."""

    def __init__(self, count: int, height: int, width: int, caption: str, titled: bool):
        self.cell = (height, width)
        self.font, self.small = ImageFont.load_default(16), ImageFont.load_default(13)
        self.blocks = -(-count // COLUMNS)
        self.left = _MARGIN + 10 + round(max(self.font.getlength(name) for name in ROWS))
        self._title = 20 if titled else 0
        self._top = _MARGIN + (30 if caption else 0)
        self._block = self._title + len(ROWS) * (height + _GAP) - _GAP + _BLOCK_GAP
        columns = min(count, COLUMNS)
        images = self.left + columns * (width + _GAP) - _GAP
        self.size = (
            max(images, self.left + round(self.font.getlength(caption))) + _MARGIN,
            self._top + self.blocks * self._block - _BLOCK_GAP + _MARGIN,
        )

    def corner(self, number: int, row: int) -> tuple[int, int]:
        """Upper left corner `(x, y)` of image `number` in one of its block's rows."""
        block, column = divmod(number, COLUMNS)
        x = self.left + column * (self.cell[1] + _GAP)
        return x, self._top + block * self._block + self._title + row * (self.cell[0] + _GAP)


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
