"""The defects of fabric and plate, six kinds for each, with size, place, shape and contrast drawn at random.

A flaw is made in the part's own coordinates from its own generator, so it moves with the part and leaves the part's
random numbers alone. Soft defects are masked where their opacity is at least half of its peak.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import cos, pi, sin

import numpy as np
import numpy.typing as npt

from cdo_ad.demo.drawing import Array, View, lattice, polyline_distance, smoothstep
from cdo_ad.demo.parts import (
    MARKS,
    PLATE_HALF,
    WARP_PITCH,
    WEFT_PITCH,
    Flaw,
    Mark,
    outline,
    plate_surface,
)

__all__ = ["FLAWS", "FlawMaker", "Surface", "blob", "misprint", "paint", "place", "sign", "visible", "worm"]

FlawMaker = Callable[[View, np.random.Generator], Flaw]
Surface = Callable[[Array, Array], Array]
"""Signed distance to the part's surface in reference pixels, negative inside."""

_DIRT = ((0.10, 0.08, 0.07), (0.16, 0.20, 0.30), (0.92, 0.91, 0.87), (0.42, 0.24, 0.16))
"""Reflectance of what lies on a part: grease, blue lint, white lint, rust."""
_MARGIN = 108.0
"""Defects of the fabric begin at most this far from its middle, so that the image shows them."""


def cloth(u: Array, v: Array) -> Array:
    """Measure the signed distance to the part of the fabric where defects begin; the fabric fills the image."""
    return np.maximum(np.abs(u), np.abs(v)) - _MARGIN


def place(rng: np.random.Generator, surface: Surface, inside: float) -> tuple[float, float]:
    """Draw a uniform point of the surface, at least `inside` from its edge."""
    while True:
        u, v = rng.uniform(-_MARGIN, _MARGIN, 2)
        if surface(np.array(u), np.array(v)) < -inside:
            return float(u), float(v)


def sign(rng: np.random.Generator) -> float:
    """Draw 1 or -1."""
    return 1.0 if rng.random() < 0.5 else -1.0


def worm(rng: np.random.Generator, start: tuple[float, float], length: float, bend: float) -> Array:
    """Draw a line of 25 points with a slowly turning direction: (25, 2), its middle at `start`."""
    turns = rng.uniform(0.0, 2.0 * pi) + np.cumsum(rng.normal(0.0, bend, 24))
    steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * length / 24.0
    points = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    moved: Array = points - points[12] + np.array(start)
    return moved


def paint(opacity: Array, color: Array | float, where: npt.NDArray[np.bool_]) -> Array:
    """Return the factor (H, W, 3) that lays `color` (a factor per channel) over the surface with this opacity."""
    factor: Array = 1.0 + (opacity * where)[..., None] * (np.broadcast_to(np.asarray(color), (3,)) - 1.0)
    return factor


def visible(view: View, surface: Surface) -> npt.NDArray[np.bool_]:
    """Mark the pixels that paint can lie on."""
    if surface is cloth:
        return np.ones(view.u.shape, dtype=np.bool_)
    return np.asarray(surface(view.u, view.v) < -0.5)


def scratch(view: View, rng: np.random.Generator, surface: Surface) -> Flaw:
    """Draw a thin irregular line, 45 to 130 long, light or dark, fading in and out; on fabric the fibres are torn."""
    line = worm(rng, place(rng, surface, 12.0), rng.uniform(45.0, 130.0), 0.09)
    distance, along = polyline_distance(view.u, view.v, line)
    width = (
        rng.uniform(0.6, 1.3)
        * (1.4 if surface is cloth else 1.0)
        * (1.0 + 0.25 * np.interp(along, np.arange(25), rng.standard_normal(25)))
    )
    strength = np.clip(0.8 + 0.35 * np.interp(along, np.arange(25), rng.standard_normal(25)), 0.35, 1.0)
    core = np.clip(0.5 + (np.maximum(width, 0.45) - distance) * view.scale, 0.0, 1.0)
    on = visible(view, surface)
    light, contrast = rng.random() < 0.6, rng.uniform(0.28, 0.5)
    if surface is cloth:
        color = (0.70, 0.71, 0.73) if light else (0.10, 0.11, 0.15)
        return Flaw(mask=core > 0.3, cover=core * strength * 1.8 * contrast, cover_color=color)
    return Flaw(mask=(core > 0.3) & on, tint=paint(core * strength, 1.0 + contrast * (1.0 if light else -1.0), on))


def blob(view: View, rng: np.random.Generator, center: tuple[float, float], radius: float, rough: float) -> Array:
    """Signed distance, negative inside, to an irregular oval around `center`."""
    turn, stretch = rng.uniform(0.0, pi), rng.uniform(0.8, 1.25)
    du, dv = view.u - center[0], view.v - center[1]
    along, across = du * cos(turn) + dv * sin(turn), dv * cos(turn) - du * sin(turn)
    cell = max(radius * 0.7, 1.0)
    wobble = lattice(rng, view.u, view.v, cell, cell)
    inside: Array = np.hypot(along / stretch, across * stretch) - radius * (1.0 + rough * wobble)
    return inside


def stain(view: View, rng: np.random.Generator, surface: Surface) -> Flaw:
    """Draw a soft-edged spill of radius 24 to 54 that takes 8 to 20 % of the light, sometimes with a darker rim."""
    radius = rng.uniform(24.0, 54.0)
    distance = blob(view, rng, place(rng, surface, 18.0), radius, 0.16)
    soft = rng.uniform(0.25, 0.5) * radius
    opacity = smoothstep(0.5 - distance / soft)
    on = visible(view, surface)
    depth = rng.uniform(0.08, 0.20)
    hue = np.array([[0.5, 0.8, 1.3], [1.0, 1.0, 1.0], [1.2, 1.0, 0.7]])[rng.integers(3)]
    rim = rng.uniform(0.0, 0.5) * np.exp(-((distance / (0.15 * radius)) ** 2))
    return Flaw(mask=(opacity >= 0.5) & on, tint=paint(opacity * (1.0 + rim), 1.0 - depth * hue, on))


def shade(view: View, rng: np.random.Generator, surface: Surface) -> Flaw:
    """Draw a quarter to a third of the image in a shade 4 to 10 % lighter or darker: a side, a band or a cloud."""
    kind = rng.integers(3)
    turn = rng.uniform(0.0, 2.0 * pi)
    center = place(rng, surface, 25.0)
    across = (view.u - center[0]) * cos(turn) + (view.v - center[1]) * sin(turn)
    field = 9.0 * lattice(rng, view.u, view.v, 50, 50) + 2.5 * lattice(rng, view.u, view.v, 16, 16)
    away = np.hypot(view.u - center[0], view.v - center[1])
    field = field + (across, np.abs(across), away)[kind]
    on = visible(view, surface)
    edge = float(np.quantile(field[on], min(0.9, rng.uniform(0.25, 0.33) / on.mean())))
    opacity = smoothstep(0.5 - (field - edge) / rng.uniform(3.0, 10.0))
    contrast = sign(rng) * rng.uniform(0.04, 0.10)
    color = 1.0 + contrast + rng.uniform(-0.01, 0.01, 3)
    return Flaw(mask=(opacity >= 0.5) & on, tint=paint(opacity, color, on))


def spot(view: View, rng: np.random.Generator, surface: Surface) -> Flaw:
    """Draw an opaque dot, 4 to 9 across, or a fibre, 12 to 28 long."""
    center = place(rng, surface, 8.0)
    if rng.random() < 0.6:
        distance = blob(view, rng, center, rng.uniform(2.0, 4.5), 0.15)
    else:
        line = worm(rng, center, rng.uniform(12.0, 28.0), 0.22)
        distance = polyline_distance(view.u, view.v, line)[0] - rng.uniform(0.6, 1.0)
    opacity = np.clip(0.5 - distance * view.scale, 0.0, 1.0)
    on = visible(view, surface)
    color = _DIRT[rng.integers(len(_DIRT))]
    return Flaw(mask=(opacity >= 0.3) & on, cover=opacity * on * rng.uniform(0.6, 0.95), cover_color=color)


def hole(view: View, rng: np.random.Generator) -> Flaw:
    """Draw missing weave, radius 4 to 12, frayed thread by thread; in half of the cases only the weft is missing."""
    radius = rng.uniform(4.0, 12.0)
    distance = blob(view, rng, place(rng, cloth, 10.0), radius, 0.18)
    fray = 1.2 * lattice(rng, np.rint(view.u / WARP_PITCH), np.rint(view.v / WEFT_PITCH), 1, 1)
    cut = distance + fray
    return Flaw(mask=np.asarray(cut < 0.3), cut=cut, cut_warp=bool(rng.random() < 0.6))


def thread(view: View, rng: np.random.Generator) -> Flaw:
    """Draw a weft thread pulled out of line (40 to 84 long), or missing or doubled on 40 to 130."""
    u0, v0 = place(rng, cloth, 15.0)
    v0 = (round(v0 / WEFT_PITCH)) * WEFT_PITCH  # on a thread
    along, across = view.u - u0, view.v - v0
    if rng.random() < 0.5:
        half = rng.uniform(20.0, 42.0)
        window = smoothstep(1.5 * (1.0 - np.abs(along) / half))
        slip = sign(rng) * rng.uniform(4.5, 7.5) * window * np.exp(-((across / (1.8 * WEFT_PITCH)) ** 2))
        return Flaw(mask=np.asarray(np.abs(slip) > 0.8), slip=slip)
    half = rng.uniform(20.0, 65.0)
    bent = across + 0.8 * lattice(rng, view.u, np.zeros_like(view.v), 30, 30)
    distance = np.maximum(np.abs(bent) - 0.5 * WEFT_PITCH, np.abs(along) - half)
    if rng.random() < 0.5:
        return Flaw(mask=np.asarray(distance < 0.3), cut=distance, cut_warp=False)
    opacity = smoothstep(0.5 - distance / 1.5)
    color = 1.0 + rng.uniform(0.18, 0.35) * np.array([1.1, 1.0, 0.85])
    return Flaw(mask=np.asarray(opacity >= 0.5), tint=paint(opacity, color, opacity > 0.0))


def chip(view: View, rng: np.random.Generator) -> Flaw:
    """Draw a nick of radius 4 to 10 in the plate's outer edge, the mat showing through and the fracture bright."""
    while True:  # walk outwards from the middle to the edge, at a uniform angle
        angle = rng.uniform(0.0, 2.0 * pi)
        ray = np.linspace(0.0, float(np.hypot(*PLATE_HALF)), 400)
        edge = int(np.argmax(outline(ray * cos(angle), ray * sin(angle)) >= 0.0))
        if edge:
            break
    radius = rng.uniform(4.0, 10.0)
    center = (float(ray[edge] * cos(angle)), float(ray[edge] * sin(angle)))
    cut = blob(view, rng, center, radius, 0.22) + 0.5 * lattice(rng, view.u, view.v, 2, 2)
    return Flaw(mask=(cut < 1.0) & (plate_surface(view.u, view.v) < 0.0), cut=cut)


def misprint(view: View, rng: np.random.Generator, marks: tuple[Mark, ...] = MARKS) -> Flaw:
    """Draw a character missing, faint, out of place or wrong; its mask is the ink that differs."""
    at = int(rng.integers(len(marks)))
    mark = marks[at]
    wrong = [c for c in "2458ACDEV" if c != mark.char][int(rng.integers(8))]
    shift = rng.uniform(0.14, 0.3, 2) * mark.height * np.array([sign(rng), sign(rng)])
    changed = [
        replace(mark, strength=0.0),
        replace(mark, strength=float(rng.uniform(0.2, 0.55))),
        Mark(mark.char, mark.u + shift[0], mark.v + shift[1], mark.height, mark.engraved),
        replace(mark, char=wrong),
    ][int(rng.integers(4))]
    return Flaw(marks=(*marks[:at], changed, *marks[at + 1 :]))


def _both(surface: Surface) -> dict[str, FlawMaker]:
    makers = {"scratch": scratch, "shade": shade, "spot": spot, "stain": stain}
    return {name: partial(maker, surface=surface) for name, maker in makers.items()}


FLAWS: dict[str, dict[str, FlawMaker]] = {
    "fabric": dict(sorted({**_both(cloth), "hole": hole, "thread": thread}.items())),
    "plate": dict(sorted({**_both(plate_surface), "chip": chip, "misprint": misprint}.items())),
}
"""The kinds of defect of each product, in alphabetical order."""
