"""Two of the built-in products: a twill fabric that fills the image, and a brushed-metal plate on a mat.

`fabric` and `plate` draw the scene's reflectance. What is wrong with a part is a `Flaw`, made by `product_flaws`; the
parts draw the same random numbers with it and without, so a flawless twin differs only where the flaw is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from cdo_ad.demo.drawing import Array, View, lattice, polyline_distance, relief, smoothstep

__all__ = [
    "GOOD_FLAW",
    "MARKS",
    "PLATE_HALF",
    "WARP_PITCH",
    "WEFT_PITCH",
    "Flaw",
    "Mark",
    "dirty",
    "fabric",
    "ink",
    "letters",
    "outline",
    "plate",
    "plate_surface",
]

WARP_PITCH, WEFT_PITCH = 6.4, 5.6
"""Distance of the fabric's threads, in reference pixels."""
PLATE_HALF = (110.0, 98.0)
"""Half the plate's width and height."""
CORNER, CHAMFER, BEVEL = 9.0, 135.0, 4.0
HOLES = ((-90.0, -78.0, 7.0), (90.0, -78.0, 7.0), (-90.0, 78.0, 7.0), (90.0, 78.0, 7.0), (56.0, 30.0, 22.0))
"""(u, v, radius) of the plate's holes."""

GLYPHS: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "C": (((4, 1), (3, 0), (1, 0), (0, 1), (0, 5), (1, 6), (3, 6), (4, 5)),),
    "D": (((0, 0), (2.6, 0), (4, 1.4), (4, 4.6), (2.6, 6), (0, 6), (0, 0)),),
    "O": (((1, 0), (3, 0), (4, 1), (4, 5), (3, 6), (1, 6), (0, 5), (0, 1), (1, 0)),),
    "-": (((0.6, 3), (3.4, 3)),),
    "2": (((0, 1), (1, 0), (3, 0), (4, 1), (4, 2), (0, 6), (4, 6)),),
    "4": (((3, 6), (3, 0), (0, 4), (4, 4)),),
    "5": (((4, 0), (0, 0), (0, 2.6), (3, 2.6), (4, 3.6), (4, 5), (3, 6), (1, 6), (0, 5)),),
    "7": (((0, 0), (4, 0), (1.4, 6)),),
    "8": (
        ((1, 0), (3, 0), (4, 1), (4, 2), (3, 3), (1, 3), (0, 2), (0, 1), (1, 0)),
        ((1, 3), (0, 4), (0, 5), (1, 6), (3, 6), (4, 5), (4, 4), (3, 3)),
    ),
    "A": (((0, 6), (2, 0), (4, 6)), ((0.8, 3.8), (3.2, 3.8))),
    "E": (((4, 0), (0, 0), (0, 6), (4, 6)), ((0, 3), (3, 3))),
    "V": (((0, 0), (2, 6), (4, 0)),),
}
"""Strokes of each character on a grid 4 wide and 6 high."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A character on the plate, printed or engraved; (u, v) is its top left corner."""

    char: str
    u: float
    v: float
    height: float
    engraved: bool = False
    strength: float = 1.0
    """Opacity of the ink or depth of the engraving, 1 where nothing is wrong."""


def letters(text: str, u: float, v: float, height: float, engraved: bool) -> tuple[Mark, ...]:
    """Place the characters of a line; (u, v) is the top left corner of the first."""
    step = height * 0.95
    return tuple(Mark(c, u + k * step, v, height, engraved) for k, c in enumerate(text) if c != " ")


MARKS = (
    letters("CDO-24", -66.0, -62.0, 24.0, False)
    + letters("5V 7A", -82.0, 2.0, 16.0, True)
    + letters("E8-2", -82.0, 34.0, 13.0, False)
)
"""What a good plate says."""


@dataclass(frozen=True, slots=True, eq=False)
class Flaw:
    """What is wrong with a part, as the parts' drawings understand it. Arrays are (H, W)."""

    mask: npt.NDArray[np.bool_] | None = None
    """The pixels that differ; None for a good part."""
    tint: Array | None = None
    """(H, W, 3) factor on the finished reflectance."""
    cover: Array | None = None
    """Opacity in [0, 1] of what lies on the finished surface."""
    cover_color: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Reflectance of what lies there."""
    slip: Array | None = None
    """Displacement in reference pixels: of the fabric's weft, of the screw's tip."""
    cut: Array | None = None
    """Signed distance to missing material, negative inside."""
    cut_warp: bool = True
    """Fabric: the warp is missing as well as the weft."""
    worn: Array | None = None
    """Screw: how far the thread is worn off, 0 to 1."""
    marks: tuple[Mark, ...] | None = None
    """The characters of plate and screw; None for those of a good part."""


GOOD_FLAW = Flaw()


def fabric(view: View, rng: np.random.Generator, flaw: Flaw) -> Array:
    """Draw a 2/1 twill of blue warp and light weft: reflectance (H, W, 3)."""
    u = view.u + 0.8 * lattice(rng, view.u, view.v, 55, 55) + 0.25 * lattice(rng, view.u, view.v, 9, 22)
    v = view.v + 0.8 * lattice(rng, view.u, view.v, 55, 55) + 0.25 * lattice(rng, view.u, view.v, 22, 9)
    if flaw.slip is not None:
        v = v + flaw.slip
    x, y = u / WARP_PITCH, v / WEFT_PITCH
    i, j = np.rint(x), np.rint(y)  # the number of the thread
    warp_half = 0.46 + 0.035 * lattice(rng, i, v, 1, 16)
    weft_half = 0.45 + 0.045 * lattice(rng, u, j, 16, 1)
    # Rise and fall of each thread: the warp dives under every third weft, one further on for each warp.
    warp = 0.75 * np.sqrt(np.clip(1.0 - ((x - i) / warp_half) ** 2, 0.0, 1.0)) - 0.55 * np.cos(2 * np.pi * (i + y) / 3)
    weft = 0.75 * np.sqrt(np.clip(1.0 - ((y - j) / weft_half) ** 2, 0.0, 1.0)) + 0.55 * np.cos(2 * np.pi * (x + j) / 3)
    warp_color = 1.0 + 0.05 * lattice(rng, i, v, 1, 60) + 0.08 * lattice(rng, u, v, 1.1, 5.0)
    weft_color = 1.0 + 0.04 * lattice(rng, u, j, 60, 1) + 0.07 * lattice(rng, u, v, 5.0, 1.1)
    if flaw.cut is not None:
        gone = 3.0 * smoothstep(0.5 - flaw.cut / 1.5)
        weft = weft - gone
        warp = warp - gone if flaw.cut_warp else warp
    height = np.maximum(np.maximum(warp, weft), -0.9)
    top = smoothstep(0.5 + (warp - weft) * 2.5)[..., None]
    dye = 1.0 + 0.02 * rng.uniform(-1.0, 1.0) + 0.008 * rng.uniform(-1.0, 1.0, 3)
    color = top * np.array([0.27, 0.36, 0.50]) * warp_color[..., None]
    color += (1.0 - top) * np.array([0.66, 0.64, 0.58]) * weft_color[..., None]
    shade = (0.62 + 0.32 * np.clip(height, -0.9, 1.3)) * (1.0 + 0.22 * np.clip(relief(view, height), -1.5, 1.5))
    shade *= 1.0 + 0.012 * lattice(rng, view.u, view.v, 45, 45)
    return dirty(color * dye * shade[..., None], flaw)


def outline(u: Array, v: Array) -> Array:
    """Signed distance to the plate's outer edge, negative inside: a rounded rectangle with one corner cut off."""
    qu, qv = np.abs(u) - (PLATE_HALF[0] - CORNER), np.abs(v) - (PLATE_HALF[1] - CORNER)
    outside = np.hypot(np.maximum(qu, 0.0), np.maximum(qv, 0.0)) + np.minimum(np.maximum(qu, qv), 0.0) - CORNER
    return np.maximum(outside, (u - v) / sqrt(2.0) - CHAMFER)


def plate_surface(u: Array, v: Array) -> Array:
    """Signed distance to the plate's metal, negative inside: the outline without the holes."""
    distance = outline(u, v)
    for hu, hv, radius in HOLES:
        distance = np.maximum(distance, radius - np.hypot(u - hu, v - hv))
    return distance


def ink(view: View, mark: Mark) -> Array:
    """Coverage of each pixel by a character's strokes: (H, W) in [0, 1]."""
    unit, width = mark.height / 6.0, mark.height / 13.0
    near = (np.abs(view.u - mark.u - 2 * unit) < 2 * unit + 4) & (np.abs(view.v - mark.v - 3 * unit) < 3 * unit + 4)
    covered = np.zeros(view.u.shape)
    u, v = view.u[near], view.v[near]
    for stroke in GLYPHS[mark.char]:
        points = np.array(stroke) * unit + np.array([mark.u, mark.v])
        distance, _ = polyline_distance(u, v, points)
        covered[near] = np.maximum(covered[near], np.clip((width - distance) * view.scale + 0.5, 0.0, 1.0))
    return covered


def plate(view: View, rng: np.random.Generator, flaw: Flaw) -> Array:
    """Draw a brushed plate with drilled holes, a bore, a chamfer and characters on a mat: reflectance (H, W, 3)."""
    u, v, (lx, ly) = view.u, view.v, view.light
    mat = _mat(view, rng)
    metal = _metal(view, rng, MARKS if flaw.marks is None else flaw.marks)
    distance = plate_surface(u, v)
    bevel = np.clip(1.0 + distance / BEVEL, 0.0, 1.0) * BEVEL * 0.5
    metal *= (1.0 + 0.55 * np.clip(relief(view, -bevel), -0.6, 0.6))[..., None]
    under = smoothstep(0.5 - outline(u + 4.0 * lx, v + 4.0 * ly) / 9.0)  # the plate's shadow falls away from the light
    for hu, hv, radius in HOLES:
        lit = smoothstep(0.5 + (radius - np.hypot(u - hu + 3.0 * lx, v - hv + 3.0 * ly)) / 5.0)
        under = under * (1.0 - 0.55 * lit)
    mat *= (1.0 - 0.55 * under)[..., None]
    solid = np.clip(0.5 - distance * view.scale, 0.0, 1.0)
    if flaw.cut is not None:
        metal *= (1.0 + 0.25 * np.clip(1.0 - np.abs(flaw.cut) / 1.2, 0.0, 1.0))[..., None]
        solid = solid * np.clip(0.5 + flaw.cut * view.scale, 0.0, 1.0)
    scene = mat + (metal - mat) * solid[..., None]
    return dirty(scene, flaw)


def dirty(scene: Array, flaw: Flaw) -> Array:
    """Lay the flaw's tint and cover over the finished part."""
    if flaw.tint is not None:
        scene = scene * flaw.tint
    if flaw.cover is not None:
        scene = scene + (np.array(flaw.cover_color) - scene) * flaw.cover[..., None]
    return scene


def _mat(view: View, rng: np.random.Generator) -> Array:
    grain = 1.0 + 0.05 * lattice(rng, view.u, view.v, 1.6, 1.6) + 0.025 * lattice(rng, view.u, view.v, 6, 6)
    grain += 0.015 * lattice(rng, view.u, view.v, 50, 50)
    mat: Array = grain[..., None] * np.array([0.36, 0.46, 0.43])
    return mat


def _metal(view: View, rng: np.random.Generator, marks: tuple[Mark, ...]) -> Array:
    u, v = view.u, view.v
    slant = v + rng.uniform(-0.02, 0.02) * u  # plates are not brushed exactly along their edge
    brushed = 0.045 * lattice(rng, u, slant, 45, 0.9) + 0.03 * lattice(rng, u, slant, 120, 2.2)
    brushed += 0.03 * lattice(rng, u, slant, 12, 0.7) + 0.012 * lattice(rng, u, v, 50, 50)
    sheen = rng.uniform(0.02, 0.05) * np.cos((v - rng.uniform(-60.0, 60.0)) / rng.uniform(45.0, 65.0))
    printed, depth = np.zeros(u.shape), np.zeros(u.shape)
    offset = rng.uniform(-0.7, 0.7, 2)  # the print's register
    black = rng.uniform(0.80, 0.90)
    worn = np.clip(1.0 + 0.05 * lattice(rng, u, v, 2, 2), 0.7, 1.0)
    for mark in marks:
        if mark.engraved:
            depth = np.maximum(depth, mark.strength * ink(view, mark))
        else:
            at = Mark(mark.char, mark.u + offset[0], mark.v + offset[1], mark.height)
            printed = np.maximum(printed, mark.strength * ink(view, at))
    shade = (1.0 + brushed + sheen) * (1.0 - 0.30 * depth) * (1.0 + 0.45 * np.clip(relief(view, -depth), -0.9, 0.9))
    shade *= 1.0 - black * worn * printed
    metal: Array = shade[..., None] * np.array([0.66, 0.67, 0.68])
    return metal
