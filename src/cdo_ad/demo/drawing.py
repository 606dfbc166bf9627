"""What the built-in products are drawn with: a camera's view, noise, lines, light and sensor.

- Lengths are *reference pixels*: the image is 256 of them wide, whatever its size in real pixels.
- A texture is a function of the part's own coordinates (u, v), so rotation and sub-pixel shift leave no corners and
  need no resampling.
- Noise comes from small tables of normal numbers (`lattice`), so the same generator gives the same part at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import cos, radians, sin

import numpy as np
import numpy.typing as npt

__all__ = [
    "REACH",
    "SIDE",
    "Array",
    "View",
    "lattice",
    "look",
    "photograph",
    "polyline_distance",
    "relief",
    "smoothstep",
]

Array = npt.NDArray[np.float64]

SIDE = 256.0
"""Width and height of the image in reference pixels."""
REACH = 210.0
"""|u| and |v| stay below this: half the diagonal and the largest shift, with room to spare."""


@dataclass(frozen=True, slots=True)
class View:
    """Where the camera sees the part, and where the light stands. All arrays are (size, size)."""

    u: Array
    """The part's horizontal coordinate at each pixel, 0 in the part's middle."""
    v: Array
    """The part's vertical coordinate, downwards."""
    scale: float
    """Real pixels for one reference pixel."""
    light: tuple[float, float]
    """Unit vector in the image, x to the right and y down, that points to the light."""


def look(rng: np.random.Generator, size: int, *, shift: float, degrees: float) -> View:
    """Draw a pose (shift in reference pixels and rotation, each uniform and two-sided) and a direction of light."""
    scale = size / SIDE
    axis = (np.arange(size) + 0.5) / scale - SIDE / 2
    du, dv = rng.uniform(-shift, shift, 2)
    turn = radians(rng.uniform(-degrees, degrees))
    x, y = axis[None, :], axis[:, None]
    light = radians(rng.uniform(205.0, 255.0))
    return View(
        u=cos(turn) * x + sin(turn) * y + du,
        v=cos(turn) * y - sin(turn) * x + dv,
        scale=scale,
        light=(cos(light), sin(light)),
    )


def smoothstep(x: Array) -> Array:
    """3 x^2 - 2 x^3 of x clipped to [0, 1]."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def lattice(rng: np.random.Generator, u: Array, v: Array, cell_u: float, cell_v: float) -> Array:
    """Interpolate value noise of standard normal numbers on a grid of `cell_u` by `cell_v` smoothly at (u, v)."""
    counts = [int(2 * REACH / cell) + 3 for cell in (cell_v, cell_u)]
    table = rng.standard_normal(counts)
    x = np.clip((u + REACH) / cell_u, 0.0, counts[1] - 1.001)
    y = np.clip((v + REACH) / cell_v, 0.0, counts[0] - 1.001)
    i, j = x.astype(np.intp), y.astype(np.intp)
    fx, fy = smoothstep(x - i), smoothstep(y - j)
    flat = table.ravel()
    at = j * counts[1] + i
    above = flat[at] * (1.0 - fx) + flat[at + 1] * fx
    at += counts[1]
    below = flat[at] * (1.0 - fx) + flat[at + 1] * fx
    mixed: Array = above * (1.0 - fy) + below * fy
    return mixed


def polyline_distance(u: Array, v: Array, points: Array) -> tuple[Array, Array]:
    """Measure the distance of each (u, v) to the line through `points` (n, 2), and where on it, counted in points."""
    best = np.full(u.shape, np.inf)
    place = np.zeros(u.shape)
    for k, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((u - x0) * dx + (v - y0) * dy) / max(dx * dx + dy * dy, 1e-12), 0.0, 1.0)
        squared = (u - x0 - t * dx) ** 2 + (v - y0 - t * dy) ** 2
        nearer = squared < best
        best = np.where(nearer, squared, best)
        place = np.where(nearer, k + t, place)
    return np.sqrt(best), place


def relief(view: View, height: Array) -> Array:
    """Return the slope of `height` (reference pixels) towards the light; positive where the surface faces it."""
    down, right = np.gradient(height, axis=0), np.gradient(height, axis=1)
    slope: Array = -(right * view.light[0] + down * view.light[1]) * view.scale
    return slope


def photograph(rng: np.random.Generator, rgb: Array, view: View) -> npt.NDArray[np.uint8]:
    """Light the scene `rgb` (H, W, 3; reflectance in [0, 1]) and take its image: (H, W, 3) uint8.

    Gain, gradient, vignette, colour temperature, blur and sensor noise are drawn from `rng`.
    """
    size = rgb.shape[0]
    axis = (np.arange(size) + 0.5) / size * 2.0 - 1.0
    x, y = axis[None, :], axis[:, None]
    direction = rng.uniform(0.0, 360.0)
    slope = rng.uniform(0.0, 0.08)
    light = 1.0 + slope * (x * cos(radians(direction)) + y * sin(radians(direction)))
    light = light * (1.0 - rng.uniform(0.02, 0.10) * (x * x + y * y) / 2.0) * rng.uniform(0.86, 1.10)
    warmth = rng.uniform(-0.025, 0.025)
    lit = rgb * light[..., None] * np.array([1.0 + warmth, 1.0, 1.0 - warmth])
    blurred = _blur(lit, rng.uniform(0.45, 0.75) * max(view.scale, 0.5))
    sigma = rng.uniform(0.8, 1.4) * np.sqrt(0.5 + blurred) / 140.0  # more light, more shot noise
    noisy = blurred + sigma * rng.standard_normal(rgb.shape)
    return np.asarray(np.rint(np.clip(noisy, 0.0, 1.0) * 255.0), dtype=np.uint8)


def _blur(rgb: Array, sigma: float) -> Array:
    """Gaussian blur of (H, W, 3), truncated at 3 sigma, edges repeated."""
    radius = max(1, round(3.0 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(rgb, pad, mode="edge")
        n = rgb.shape[axis]
        rgb = np.zeros_like(rgb)
        for k, tap in enumerate(taps):
            rgb += tap * padded.take(range(k, k + n), axis)
    return rgb
