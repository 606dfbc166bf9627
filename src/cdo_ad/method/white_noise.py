"""MOM's synthetic anomalies: rectangles of white noise, drawn on tensors, one random generator an image.

An image's perturbation depends on its own seed alone, so it is the same whatever the batch, the number of workers or
of devices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cdo_ad.config import BackgroundRule

__all__ = ["foreground", "image_seed", "white_noise"]

MOST_RECTANGLES = 4
SMALLEST_SHARE, LARGEST_SHARE = 40, 10  # half sides lie in [side / 40, side / 10)


def image_seed(seed: int, epoch: int, index: int) -> int:
    """A 63-bit seed for one image in one epoch; neighbours in any argument give unrelated numbers.

    Three rounds of the splitmix64 finaliser (Steele, Lea, Flood 2014): no two of a training coincide in practice.
    """
    state = 0
    for value in (seed, epoch, index):
        state = (state + value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def white_noise(images: Tensor, seeds: Sequence[int], background: BackgroundRule = "none") -> tuple[Tensor, Tensor]:
    """Draw into images 0 to 4 rectangles of white noise (METHOD: "MOM").

    The number is uniform on {0, 1, 2, 3, 4}, half sides are whole numbers uniform in [side / 40, side / 10), the centre
    is uniform among the places where the rectangle lies inside the image (and, with `background`, the centre on the
    part), the noise uniform on 0..254 for each pixel and channel.

    Args:
        images: (B, C, H, W) uint8 or float in 0..255.
        seeds: one seed an image, see `image_seed`.
        background: where centres may lie: `"none"` anywhere, otherwise on the part, see `foreground`.

    Returns:
        The changed images, (B, C, H, W) of the same type, and the union of the rectangles, (B, H, W) bool, on the
        device of `images`, which is left as it was.
    """
    images = images.clone()
    mask = torch.zeros(images.shape[0], *images.shape[-2:], dtype=torch.bool, device=images.device)
    allowed = None if background == "none" else foreground(images, background).cpu()
    for i, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        _draw_rectangles(images[i], mask[i], None if allowed is None else allowed[i], generator)
    return images, mask


def _draw_rectangles(image: Tensor, mask: Tensor, allowed: Tensor | None, generator: torch.Generator) -> None:
    height, width = int(image.shape[-2]), int(image.shape[-1])
    for _ in range(_integer(0, MOST_RECTANGLES + 1, generator)):
        half_h = _half_side(height, generator)
        half_w = _half_side(width, generator)
        y, x = _centre(height, width, half_h, half_w, allowed, generator)
        noise = torch.randint(0, 255, (image.shape[0], 2 * half_h, 2 * half_w), generator=generator, dtype=torch.uint8)
        window = (slice(y - half_h, y + half_h), slice(x - half_w, x + half_w))
        image[(slice(None), *window)] = noise.to(image.device)
        mask[window] = True


def _centre(
    height: int, width: int, half_h: int, half_w: int, allowed: Tensor | None, generator: torch.Generator
) -> tuple[int, int]:
    if allowed is not None:
        # drawn among the permitted centres at once: what the original reaches by up to 200 tries
        inside = allowed[half_h : height - half_h + 1, half_w : width - half_w + 1]
        places = inside.flatten().nonzero()
        if len(places):
            place = int(places[_integer(0, len(places), generator)])
            return half_h + place // inside.shape[1], half_w + place % inside.shape[1]
    return _integer(half_h, height - half_h + 1, generator), _integer(half_w, width - half_w + 1, generator)


def _half_side(side: int, generator: torch.Generator) -> int:
    low = max(1, side // SMALLEST_SHARE)
    return _integer(low, max(low + 1, side // LARGEST_SHARE), generator)


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number uniform in [low, high)."""
    return int(torch.randint(low, high, (1,), generator=generator))


def foreground(images: Tensor, background: BackgroundRule) -> Tensor:
    """Where the part is, as opposed to the background around it.

    `"extremes"` is the original's rule: background is where the gray mean is < 30 or > 220. `"border"` takes the
    colours along the image's edge as the background's, whatever they are: a pixel is background when its colour is
    as near to the edge's median as the edge's own pixels are. Both are then cleaned by a 7x7 median and the background
    grown by a 19x19 dilation. An image whose part would cover less than 2 % of it (a texture that fills the image)
    counts as part everywhere.

    Args:
        images: (B, C, H, W) uint8 or float in 0..255.
        background: `"none"`, `"extremes"` or `"border"`.

    Returns:
        (B, H, W) bool, True on the part.
    """
    if background == "none":
        return torch.ones(images.shape[0], *images.shape[-2:], dtype=torch.bool, device=images.device)
    is_background = _extremes(images) if background == "extremes" else _like_border(images)
    # the median of a binary map is its majority
    majority = F.avg_pool2d(is_background[:, None].float(), 7, stride=1, padding=3, count_include_pad=False) > 0.5
    grown = F.max_pool2d(majority.float(), 19, stride=1, padding=9)[:, 0] > 0.5
    part = ~grown
    too_small = part.flatten(1).float().mean(dim=1) < 0.02
    return part | too_small[:, None, None]


def _extremes(images: Tensor) -> Tensor:
    gray = images.float().mean(dim=1)
    return (gray < 30) | (gray > 220)


def _like_border(images: Tensor, ring: int = 4, floor: float = 12.0) -> Tensor:
    pixels = images.float()
    edge = torch.cat(
        [
            pixels[..., :ring, :].flatten(2),
            pixels[..., -ring:, :].flatten(2),
            pixels[..., :ring].flatten(2),
            pixels[..., -ring:].flatten(2),
        ],
        dim=2,
    )  # (B, C, pixels along the edge)
    median = edge.median(dim=2).values
    spread = (edge - median[..., None]).abs().amax(dim=1).median(dim=1).values  # (B,): median deviation
    distance = (pixels - median[..., None, None]).abs().amax(dim=1)
    return distance <= (4 * spread + floor)[:, None, None]
