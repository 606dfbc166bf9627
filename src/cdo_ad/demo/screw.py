"""The third built-in product: a screw that lies anywhere on a plain ground, turned by any angle, and its defects.

(u, v) are the screw's own coordinates: u runs along its axis from the head to the tip, v across.
"""

from __future__ import annotations

from functools import partial
from math import pi

import numpy as np
import numpy.typing as npt

from cdo_ad.demo.drawing import Array, View, lattice, polyline_distance, relief, smoothstep
from cdo_ad.demo.flaws import FlawMaker, blob, misprint, paint, place, sign, worm
from cdo_ad.demo.parts import Flaw, dirty, ink, letters

__all__ = ["SCREW_DEGREES", "SCREW_FLAWS", "SCREW_SHIFT", "screw", "screw_surface"]

SCREW_SHIFT, SCREW_DEGREES = 18.0, 180.0
"""The screw lies up to so many reference pixels from the image's middle, and at any angle."""
HEAD, NECK, THREAD, TAPER, TIP = -92.0, -62.0, -8.0, 72.0, 95.0
"""Where along the axis the head, the shank, the thread and the tip begin, and where the screw ends."""
HEAD_RADIUS, SHANK_RADIUS, CORE_RADIUS, CREST_RADIUS = 30.0, 13.5, 10.5, 15.5
PITCH, LEAD = 7.0, 0.2
"""Distance of two turns of the thread, and how much of it a turn is slanted."""
SLOT = (-85.0, 4.0)
"""Depth and half width of the slot in the head."""
PRINT = letters("A2-5", -57.0, -6.5, 12.0, False)
"""What is printed on the shank of a good screw."""


def screw(view: View, rng: np.random.Generator, flaw: Flaw) -> Array:
    """Draw a screw on a plain ground: reflectance (H, W, 3)."""
    light_u, light_v = _light(view)
    turn = rng.uniform(0.0, PITCH)  # the screw has rolled before it came to rest
    u, v = view.u, view.v if flaw.slip is None else view.v - flaw.slip
    radius = _radius(u, v, turn, flaw.worn)
    distance = _outline(u, v, radius)
    if flaw.cut is not None:
        distance = np.maximum(distance, -flaw.cut)
    height = np.sqrt(np.clip(radius**2 - v**2, 0.0, None))
    facing = np.tanh(0.55 * relief(view, height))
    glint = np.exp(-(((v / np.maximum(radius, 1.0) - 0.55 * light_v) / 0.22) ** 2))
    turned = (
        0.035 * lattice(rng, u, v, 0.9, 30) + 0.025 * lattice(rng, u, v, 3.0, 60) + 0.012 * lattice(rng, u, v, 40, 40)
    )
    shade = (0.52 + 0.20 * facing + 0.28 * glint) * (1.0 + turned)
    marks = PRINT if flaw.marks is None else flaw.marks
    shift, worn_ink = rng.uniform(-0.6, 0.6), np.clip(1.0 + 0.05 * lattice(rng, u, v, 2, 2), 0.7, 1.0)
    for mark in marks:
        shade *= 1.0 - 0.72 * mark.strength * worn_ink * ink(View(u + shift, v, view.scale, view.light), mark)
    if flaw.cut is not None:  # the fracture is bright
        shade *= 1.0 + 0.3 * np.clip(1.0 - np.abs(flaw.cut) / 1.3, 0.0, 1.0)
    metal = shade[..., None] * np.array([0.98, 0.97, 0.93])
    ground = _ground(view, rng)
    away_u, away_v = u + 5.0 * light_u, v + 5.0 * light_v  # the shadow falls away from the light
    shadow = _outline(away_u, away_v, _radius(away_u, away_v, turn, flaw.worn))
    if flaw.cut is not None:
        shadow = np.maximum(shadow, -flaw.cut)
    ground *= (1.0 - 0.45 * smoothstep(0.5 - shadow / 9.0))[..., None]
    solid = np.clip(0.5 - distance * view.scale, 0.0, 1.0)
    return dirty(ground + (metal - ground) * solid[..., None], flaw)


def screw_surface(u: Array, v: Array) -> Array:
    """About the signed distance to the screw's metal, negative inside, whatever the turn of its thread."""
    return _outline(u, v, _radius(u, v, 0.0, np.full(np.shape(u), 1.0)))


def _ground(view: View, rng: np.random.Generator) -> Array:
    grain = 1.0 + 0.02 * lattice(rng, view.u, view.v, 1.5, 1.5) + 0.012 * lattice(rng, view.u, view.v, 8, 8)
    grain += 0.012 * lattice(rng, view.u, view.v, 60, 60)
    ground: Array = grain[..., None] * np.array([0.60, 0.58, 0.53])
    return ground


def _radius(u: Array, v: Array, turn: float, worn: Array | None) -> Array:
    """Half the screw's width at each point of its axis, thread and all."""
    wave = 0.5 + 0.5 * np.cos(2.0 * pi * (u + turn - LEAD * v) / PITCH)
    crest = CREST_RADIUS - CORE_RADIUS if worn is None else (CREST_RADIUS - CORE_RADIUS) * (1.0 - worn)
    starts = smoothstep((u - THREAD) / 8.0)
    taper = 1.0 - smoothstep((u - TAPER) / (TIP - TAPER) * 0.5) * 2.0
    body = (SHANK_RADIUS + (CORE_RADIUS + crest * wave**0.7 - SHANK_RADIUS) * starts) * np.clip(taper, 0.0, 1.0)
    dome = HEAD_RADIUS * np.sqrt(np.clip(1.0 - ((NECK - u) / (NECK - HEAD)) ** 4, 0.0, 1.0))
    return np.where(u < NECK, dome, body)


def _outline(u: Array, v: Array, radius: Array) -> Array:
    side = np.maximum(np.abs(v) - radius, np.maximum(HEAD - u, u - TIP))
    slot = np.maximum(u - SLOT[0], np.abs(v) - SLOT[1])
    return np.maximum(side, -slot)


def _light(view: View) -> tuple[float, float]:
    """The direction of the light in the screw's coordinates."""
    along_x = (float(view.u[0, 1] - view.u[0, 0]) * view.scale, float(view.v[0, 1] - view.v[0, 0]) * view.scale)
    along_y = (float(view.u[1, 0] - view.u[0, 0]) * view.scale, float(view.v[1, 0] - view.v[0, 0]) * view.scale)
    x, y = view.light
    return along_x[0] * x + along_y[0] * y, along_x[1] * x + along_y[1] * y


# ---- defects


def bent(view: View, rng: np.random.Generator) -> Flaw:
    """Draw a tip that is bent by 8 to 18, from a point in the thread; the mask is where the screw is and should be."""
    start = rng.uniform(15.0, 50.0)
    along = np.clip((view.u - start) / (TIP - start), 0.0, 1.3)
    slip = sign(rng) * rng.uniform(8.0, 18.0) * along**1.7
    metal = (screw_surface(view.u, view.v) < 1.0) | (screw_surface(view.u, view.v - slip) < 1.0)
    return Flaw(mask=np.asarray((np.abs(slip) > 1.0) & metal), slip=slip)


def cut(view: View, rng: np.random.Generator) -> Flaw:
    """Draw a tip that broke off, or a notch of 3 to 7 by 7 to 14 in the side; the mask is the missing material."""
    rough = 0.5 * lattice(rng, view.u, view.v, 2, 2)
    if rng.random() < 0.5:
        end = rng.uniform(48.0, 80.0)
        missing = end - view.u + rng.uniform(-0.35, 0.35) * view.v + rough
    else:
        half, depth, at = rng.uniform(1.5, 3.5), rng.uniform(7.0, 14.0), rng.uniform(-52.0, 60.0)
        edge = sign(rng) * view.v - (CREST_RADIUS - depth)
        missing = np.maximum(np.abs(view.u - at) - half, -edge) + rough
    inside = screw_surface(view.u, view.v) < 1.0
    return Flaw(mask=np.asarray((missing < 0.5) & inside), cut=missing)


def head(view: View, rng: np.random.Generator) -> Flaw:
    """Draw a scratch on the head, 18 to 40 long, light or dark."""
    center = rng.uniform(HEAD + 8.0, NECK - 6.0), rng.uniform(-18.0, 18.0)
    line = worm(rng, center, rng.uniform(18.0, 40.0), 0.08)
    core = np.clip(0.5 + (rng.uniform(0.7, 1.4) - polyline_distance(view.u, view.v, line)[0]) * view.scale, 0.0, 1.0)
    on = np.asarray((screw_surface(view.u, view.v) < -0.5) & (view.u < NECK))
    contrast = rng.uniform(0.3, 0.5) * sign(rng)
    return Flaw(mask=(core > 0.3) & on, tint=paint(core, 1.0 + contrast, on))


def rust(view: View, rng: np.random.Generator) -> Flaw:
    """Draw a patch of rust or a stain of oil, of radius 7 to 17, with a soft edge."""
    radius = rng.uniform(7.0, 17.0)
    away = blob(view, rng, place(rng, screw_surface, 3.0), radius, 0.18)
    opacity = smoothstep(0.5 - away / (rng.uniform(0.3, 0.6) * radius))
    on = np.asarray(screw_surface(view.u, view.v) < -0.5)
    color: npt.NDArray[np.float64] = np.array([[0.62, 0.42, 0.28], [0.72, 0.66, 0.50]])[rng.integers(2)]
    return Flaw(mask=(opacity >= 0.5) & on, tint=paint(opacity * rng.uniform(0.55, 0.95), color, on))


def thread(view: View, rng: np.random.Generator) -> Flaw:
    """Draw 12 to 32 of the thread worn flat, on one side or on both, with scuffed metal."""
    half, at = rng.uniform(6.0, 16.0), rng.uniform(THREAD + 24.0, TAPER - 18.0)
    worn = smoothstep(0.5 - (np.abs(view.u - at) - half) / 4.0)
    if rng.random() < 0.6:
        worn = worn * smoothstep(0.5 + (sign(rng) * view.v + rng.uniform(-3.0, 6.0)) / 3.0)
    scuffed = 1.0 + 0.12 * lattice(rng, view.u, view.v, 5.0, 1.0)
    on = np.asarray(np.abs(view.v) < CREST_RADIUS)
    mask = np.asarray((worn >= 0.5) & on)
    return Flaw(mask=mask, worn=worn, tint=1.0 + (worn * on * (scuffed - 1.0))[..., None] * np.ones(3))


SCREW_FLAWS: dict[str, FlawMaker] = {
    "bent": bent,
    "cut": cut,
    "head": head,
    "misprint": partial(misprint, marks=PRINT),
    "rust": rust,
    "thread": thread,
}
"""The kinds of defect, in alphabetical order."""
