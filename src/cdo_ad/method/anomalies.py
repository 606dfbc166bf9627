"""Synthetic anomalies of seven kinds, beyond the paper's white noise: to learn from, and to learn which branch sees
what.

White noise is easy to see and says nothing about a change of intensity, a thin line or a piece in the wrong place. Each
kind imitates one way in which products fail; none is drawn from an image of a defect. An image's anomaly depends on
its own seed, the kind and, where a piece of another image is used, on the batch that it is in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from cdo_ad.config import ANOMALY_KINDS, AnomalyKind, BackgroundRule
from cdo_ad.method.preprocess import blur_matrix
from cdo_ad.method.white_noise import white_noise

__all__ = ["KINDS", "SURFACE_KINDS", "SurfaceKind", "add_anomalies", "add_anomaly", "add_surface_anomaly"]

KINDS = ANOMALY_KINDS
"""`noise` the paper's rectangles; `perlin` a smooth irregular region of another texture; `cut` a turned piece of
another good image; `intensity` a large low-contrast change of brightness; `line` a scratch or thread; `spot` small dark
or bright dots; `smear` a blurred patch."""

SurfaceKind = Literal["dent", "rough"]
SURFACE_KINDS: tuple[SurfaceKind, ...] = get_args(SurfaceKind)
"""`dent` a patch that lies lower or higher, with a soft or a sharp edge; `rough` a patch of uneven surface."""

REFERENCE = 256  # pixels: sizes below are for an image whose shorter side has this many


def add_anomaly(images: Tensor, kind: AnomalyKind, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Draw one anomaly of a kind into each image.

    Args:
        images: (B, 3, H, W) uint8 or float in 0..255; left as they are. `perlin` and `cut` take pieces of one
            another's images.
        kind: one of `KINDS`.
        seeds: one an image.

    Returns:
        The changed images, of the same shape and type, and where, (B, H, W) bool; with `noise` a mask may be empty.
    """
    if kind == "noise":
        return white_noise(images, seeds)
    changed, masks = images.clone(), torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool)
    for i, seed in enumerate(seeds):
        draw = _Draw(seed, int(images.shape[-2]), int(images.shape[-1]))
        other = images[draw.integer(0, len(images))].cpu().float()
        image, mask = _DRAWERS[kind](draw, images[i].cpu().float(), other)
        changed[i] = image.clamp(0, 255) if images.is_floating_point() else image.round().clamp(0, 255).to(images.dtype)
        masks[i] = mask
    return changed, masks.to(images.device)


def add_surface_anomaly(surfaces: Tensor, kind: SurfaceKind, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Draw one anomaly of a kind into each surface; what is missing stays missing.

    Args:
        surfaces: (B, 2, H, W) float, see `cdo_ad.method.surface`; left as they are.
        kind: one of `SURFACE_KINDS`.
        seeds: one a surface.

    Returns:
        The changed surfaces, of the same shape, and where, (B, H, W) bool.
    """
    changed, masks = surfaces.clone(), torch.zeros(len(surfaces), *surfaces.shape[-2:], dtype=torch.bool)
    for i, seed in enumerate(seeds):
        draw = _Draw(seed, int(surfaces.shape[-2]), int(surfaces.shape[-1]))
        masks[i] = draw.blob(0.002, 0.03)
        if kind == "dent":
            change = draw.soften(masks[i], draw.log_uniform(0.3, 6)) * draw.sign() * draw.log_uniform(0.5, 8)
        else:
            cells = 2 ** draw.integer(4, 7)
            uneven = draw.smooth(cells, cells, (draw.height, draw.width))
            change = draw.soften(masks[i], 1.0) * uneven * draw.log_uniform(0.3, 3)
        changed[i, 0] += (change * draw.scale).to(changed)
    return changed, masks.to(surfaces.device)


def add_anomalies(
    images: Tensor, kinds: Sequence[AnomalyKind], seeds: Sequence[int], background: BackgroundRule = "none"
) -> tuple[Tensor, Tensor]:
    """Draw into each image an anomaly of a kind that follows from its seed; as `add_anomaly` otherwise.

    `background` says where white noise may be, see `cdo_ad.method.white_noise.white_noise`; other kinds do not know it.
    """
    if tuple(kinds) == ("noise",):
        return white_noise(images, seeds, background)
    changed, masks = images.clone(), torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool)
    masks = masks.to(images.device)
    chosen = [kinds[_Draw(seed, 1, 1).integer(0, len(kinds))] for seed in seeds]
    for kind in dict.fromkeys(chosen):
        places = [i for i, k in enumerate(chosen) if k == kind]
        chosen_seeds = [seeds[i] for i in places]
        drawn = white_noise(images[places], chosen_seeds, background) if kind == "noise" else None
        changed[places], masks[places] = drawn or add_anomaly(images[places], kind, chosen_seeds)
    return changed, masks


class _Draw:
    """Random numbers and shapes for one image of H x W pixels."""

    def __init__(self, seed: int, height: int, width: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.height, self.width = height, width
        self.scale = min(height, width) / REFERENCE

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def integer(self, low: int, high: int) -> int:
        """Uniform in [low, high)."""
        return int(torch.randint(low, high, (), generator=self.generator))

    def sign(self) -> int:
        return 2 * self.integer(0, 2) - 1

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def smooth(self, rows: int, columns: int, size: tuple[int, int]) -> Tensor:
        """(H, W) smooth noise of about unit variance with that many cells."""
        cells = self.normal(1, 1, rows + 2, columns + 2)
        return F.interpolate(cells, size=size, mode="bicubic", align_corners=False)[0, 0]

    def soften(self, mask: Tensor, sigma: float) -> Tensor:
        """(H, W) blurred by `sigma` reference pixels."""
        sigma *= self.scale
        return (blur_matrix(self.height, sigma) @ mask.double() @ blur_matrix(self.width, sigma).T).float()

    def blob(self, low: float, high: float) -> Tensor:
        """(H, W) bool: a rectangle, ellipse or irregular patch that covers about `low` to `high` of the image."""
        area, aspect = self.log_uniform(low, high) * self.height * self.width, math.exp(self.uniform(-1.2, 1.2))
        h = min(max(4, round(math.sqrt(area * aspect))), max(4, int(0.8 * self.height)))
        w = min(max(4, round(math.sqrt(area / aspect))), max(4, int(0.8 * self.width)))
        y, x = self.integer(0, max(1, self.height - h + 1)), self.integer(0, max(1, self.width - w + 1))
        shape, patch = self.integer(0, 3), torch.ones(h, w, dtype=torch.bool)
        if shape:
            rows, columns = torch.linspace(-1, 1, h)[:, None], torch.linspace(-1, 1, w)[None, :]
            radius = rows**2 + columns**2
            cells = self.integer(3, 9)
            patch = (radius + 0.5 * self.smooth(cells, cells, (h, w)) if shape == 2 else radius) < 1
        mask = torch.zeros(self.height, self.width, dtype=torch.bool)
        mask[y : y + h, x : x + w] = patch[: self.height - y, : self.width - x]
        return mask

    def turned(self, image: Tensor) -> Tensor:
        """An image turned, moved, scaled and lit in another way, (3, H, W)."""
        angle = self.uniform(0, 2 * math.pi) if self.integer(0, 2) else self.integer(0, 4) * math.pi / 2
        zoom = self.uniform(0.6, 1.25)
        cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
        theta = torch.tensor([[[cos, -sin, self.uniform(-0.6, 0.6)], [sin, cos, self.uniform(-0.6, 0.6)]]])
        grid = F.affine_grid(theta, [1, 3, self.height, self.width], align_corners=False)
        moved = F.grid_sample(image[None], grid, padding_mode="reflection", align_corners=False)[0]
        mean = moved.mean()
        return (moved - mean) * self.uniform(0.6, 1.5) + mean + self.uniform(-40, 40)

    def canvas(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = Image.new("L", (self.width, self.height))
        return image, ImageDraw.Draw(image)


def _blend(image: Tensor, other: Tensor, amount: Tensor) -> Tensor:
    return image * (1 - amount) + other * amount


def _perlin(draw: _Draw, image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = 2 ** draw.integer(1, 5), 2 ** draw.integer(1, 5)
    mask = draw.smooth(rows, columns, (draw.height, draw.width)) > draw.uniform(0.8, 1.5)
    if mask.sum() < 12:
        mask = draw.blob(0.002, 0.06)
    if draw.integer(0, 2):
        texture = draw.turned(other)
    else:
        cells = 2 ** draw.integer(3, 8)
        texture = draw.smooth(cells, cells, (draw.height, draw.width)).expand(3, -1, -1) * 75 + 127
    return _blend(image, texture, mask * draw.uniform(0.3, 1.0)), mask


def _cut(draw: _Draw, image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    mask = draw.blob(0.004, 0.08)
    return _blend(image, draw.turned(other), draw.soften(mask, draw.uniform(0.3, 1.5))), mask


def _intensity(draw: _Draw, image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    kind = draw.integer(0, 3)
    if kind == 0:  # a corner or a side, along two straight edges
        angle = draw.uniform(0, 2 * math.pi)
        y = (torch.arange(draw.height) / draw.height - 0.5)[:, None]
        x = (torch.arange(draw.width) / draw.width - 0.5)[None, :]
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        mask = (along > draw.uniform(0, 0.35)) & (across > draw.uniform(-0.7, 0.2))
    elif kind == 1:
        mask = draw.blob(0.05, 0.35)
    else:
        mask = draw.smooth(2, 2, (draw.height, draw.width)) > draw.uniform(0.6, 1.3)
    if mask.sum() < 0.003 * mask.numel():
        mask = draw.blob(0.05, 0.35)
    amount = draw.soften(mask, draw.log_uniform(1, 14))
    strength = draw.sign() * draw.uniform(12, 60)
    changed = image + strength * amount if draw.integer(0, 2) else image * (1 + amount * strength / 110)
    if draw.uniform(0, 1) < 0.4:  # rougher, too
        changed = changed + amount * draw.normal(draw.height, draw.width) * draw.uniform(3, 20)
    return changed, amount > 0.5


def _line(draw: _Draw, image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    canvas, pen = draw.canvas()
    for _ in range(draw.integer(1, 3)):
        point = (draw.uniform(0, draw.width), draw.uniform(0, draw.height))
        angle, points = draw.uniform(0, 2 * math.pi), [point]
        for _ in range(draw.integer(4, 16)):
            angle += 0.4 * float(draw.normal(1))
            step = draw.uniform(4, 14) * draw.scale
            x, y = points[-1][0] + step * math.cos(angle), points[-1][1] + step * math.sin(angle)
            points.append((min(max(x, 0.0), draw.width - 1.0), min(max(y, 0.0), draw.height - 1.0)))
        pen.line(points, fill=255, width=max(1, round(draw.integer(1, 4) * draw.scale)))
    mask = torch.from_numpy(np.asarray(canvas) > 0)
    return image + draw.sign() * draw.uniform(25, 110) * draw.soften(mask, draw.uniform(0.4, 1.2)), mask


def _spot(draw: _Draw, image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    canvas, pen = draw.canvas()
    for _ in range(draw.integer(1, 4)):
        x, y = draw.integer(0, draw.width), draw.integer(0, draw.height)
        a, b = (max(1, round(draw.integer(2, 9) * draw.scale)) for _ in range(2))
        pen.ellipse((x - a, y - b, x + a, y + b), fill=255)
    mask = torch.from_numpy(np.asarray(canvas) > 0)
    return image + draw.sign() * draw.uniform(25, 110) * draw.soften(mask, draw.uniform(0.5, 2.0)), mask


def _smear(draw: _Draw, image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    mask = draw.blob(0.008, 0.1)
    sigma = draw.uniform(2, 7) * draw.scale
    rows = blur_matrix(draw.height, sigma if draw.integer(0, 2) else 0.0).float()
    columns = blur_matrix(draw.width, sigma).float()
    smeared = rows @ image @ columns.T + draw.uniform(-25, 25)
    return _blend(image, smeared, draw.soften(mask, 1.0)), mask


_DRAWERS: dict[AnomalyKind, Callable[[_Draw, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "perlin": _perlin,
    "cut": _cut,
    "intensity": _intensity,
    "line": _line,
    "spot": _spot,
    "smear": _smear,
}
