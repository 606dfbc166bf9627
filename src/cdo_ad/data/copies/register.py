"""Compare two images of a set: register one to the other, and correlate what is left of what all images share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from cdo_ad.data.copies.canvas import (
    CANVAS,
    COARSE_BAND,
    FINE,
    FINE_BAND,
    WEIGHT,
    ComplexArray,
    FloatArray,
    Matrix,
    blur,
    cycles,
    prepared,
    spectrum,
    warped,
)

__all__ = ["Comparison"]

RADII, ANGLES, HARMONICS = 20, 128, 33
SHIFT = 16
"""Pixels of the canvas: the largest shift between copies, an eighth of the side."""
PROMISING = 0.3
"""Plain correlation below which a pair is no copy without a closer look."""
VERIFIED, VERIFIED_ALIKE = 0.5, 0.75
"""Partial correlation of copies, where images share nothing and where they share everything: linear between them."""
KEPT = 1000
"""Images whose shared structure is kept, 66 kB each."""


class Comparison:
    """All prepared images of a set, and what compares two of them."""

    def __init__(self, images: Sequence[npt.NDArray[np.uint8]]) -> None:
        made = [prepared(image) for image in images]
        self.count = len(made)
        self.canvases = np.stack([canvas for canvas, _ in made]).astype(np.float16)
        self.centres = np.stack([centre for _, centre in made])
        self.filter = self._whitening()
        self.mean = np.zeros(self.filter.shape, dtype=np.complex64)
        if self.count >= 8:  # with fewer images the mean is too much each image's own
            self.mean = sum((self.whitened(c) for c in self.canvases), self.mean) / np.float32(self.count)
        self.polar = self._polar()
        halves = [blur(canvas.astype(np.float32), 1.0)[::2, ::2] for canvas in self.canvases]
        self.halves = np.stack(halves).astype(np.float16)
        self._shared: dict[tuple[int, ...], ComplexArray] = {}

    def _whitening(self) -> FloatArray:
        power = sum(np.abs(spectrum(canvas)) ** 2 for canvas in self.canvases) / self.count
        power = ndimage.gaussian_filter(power, 1.0, mode=("wrap", "reflect"))
        low, high = FINE
        middle = float(np.median(power[(cycles > low) & (cycles < high)]))
        return (1 / np.sqrt(power + 0.02 * middle + 1e-12)).astype(np.float32)

    def whitened(self, canvas: npt.NDArray[Any]) -> ComplexArray:
        """The half spectrum of a canvas, whitened, without the mean of all images."""
        return spectrum(canvas) * self.filter - self.mean

    def _polar(self) -> ComplexArray:
        """(n, RADII, HARMONICS) spectra over the angle about each part's centre, of the coarse band."""
        radius = np.linspace(4, 54, RADII)[:, None]
        angle = 2 * np.pi * np.arange(ANGLES)[None] / ANGLES
        sines, cosines, weight = radius * np.sin(angle), radius * np.cos(angle), np.sqrt(radius)
        polar = []
        for canvas, centre in zip(self.canvases, self.centres, strict=True):
            coarse = fft.irfft2(self.whitened(canvas) * COARSE_BAND, s=(CANVAS, CANVAS))
            around = ndimage.map_coordinates(coarse, [centre[0] + sines, centre[1] + cosines], order=1) * weight
            polar.append(fft.rfft(around, axis=1)[:, :HARMONICS].astype(np.complex64))
        return np.stack(polar)

    def likeness(self, i: int, j: int, references: Sequence[int]) -> float:
        """How far image j is a copy of image i: the partial correlation where it proves one, else 0."""
        own = self.whitened(self.canvases[i])
        plain, other = self.registered(i, j, own)
        if plain < PROMISING:
            return 0.0
        shared = self._shared_by(i, tuple(k for k in references if k != j), own)
        energies = [max(_dot(each, each), 1e-12) for each in (own, other, shared)]
        with_i = max(0.0, _dot(own, shared) / np.sqrt(energies[0] * energies[2]))
        with_j = max(0.0, _dot(other, shared) / np.sqrt(energies[1] * energies[2]))
        both = _dot(own, other) / np.sqrt(energies[0] * energies[1])
        partial = (both - with_i * with_j) / np.sqrt(max((1 - with_i**2) * (1 - with_j**2), 1e-6))
        alike = with_i * with_j if len(references) > 1 else 1.0  # with two images, nothing tells what others share
        needed = VERIFIED + (VERIFIED_ALIKE - VERIFIED) * min(1.0, alike)
        return float(min(partial, 1.0)) if partial >= needed else 0.0

    def _shared_by(self, i: int, references: tuple[int, ...], own: ComplexArray) -> ComplexArray:
        """The mean of the references, each registered to image i and of unit energy."""
        key = (i, *references)
        if key not in self._shared:
            total = np.zeros_like(own)
            for k in references:
                _, moved = self.registered(i, k, own)
                total += moved / np.float32(np.sqrt(max(_dot(moved, moved), 1e-12)))
            self._shared[key] = total
        return self._shared[key]

    def forget(self) -> None:
        """Free what `likeness` keeps of its images i, where that has become much."""
        if len(self._shared) > KEPT:
            self._shared.clear()

    def registered(self, i: int, j: int, own: ComplexArray) -> tuple[float, ComplexArray]:
        """The correlation of images i and j at their best registration, and j's spectrum there.

        Tried are j as it lies, and the likelier of its best turn and its best mirrored turn, each with its best shift;
        the better one is refined.
        """
        canvas = self.canvases[j].astype(np.float32)
        energy = _dot(own, own)
        best, at, found, dy, dx = -1.0, (np.eye(2), np.zeros(2)), own, 0, 0
        for matrix, offset in ((np.eye(2), np.zeros(2)), self._turn(i, j)):
            moved = canvas if not offset.any() else warped(canvas, matrix, offset)
            tried = self.whitened(moved)
            value, y, x = _peak(own, tried, SHIFT)
            value /= np.sqrt(max(energy * _dot(tried, tried), 1e-12))
            if value > best:
                best, at, found, dy, dx = value, (matrix, offset + matrix @ [y, x]), tried, y, x
        if not 0.1 < best < 0.985:
            return best, found if dy == dx == 0 else self.whitened(warped(canvas, *at))
        refined = _refined(self.halves[i].astype(np.float32), self.halves[j].astype(np.float32), *at)
        tried = self.whitened(warped(canvas, *refined))
        value = _dot(own, tried) / np.sqrt(max(energy * _dot(tried, tried), 1e-12))
        if value > best:
            return value, tried
        return best, found if dy == dx == 0 else self.whitened(warped(canvas, *at))

    def _turn(self, i: int, j: int) -> tuple[Matrix, Matrix]:
        """The turn about the parts' centres, mirrored or not, that matches best at coarse scale."""
        a, b = self.polar[i], self.polar[j]
        direct = fft.irfft((np.conj(a) * b).sum(axis=0), n=ANGLES)
        mirrored = fft.irfft((a * b).sum(axis=0), n=ANGLES)
        flip = bool(mirrored.max() > direct.max())
        angle = 2 * np.pi * int((mirrored if flip else direct).argmax()) / ANGLES - (np.pi if flip else 0.0)
        matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        if flip:
            matrix = matrix @ np.diag([1.0, -1.0])
        return matrix, self.centres[j] - matrix @ self.centres[i]


def _dot(a: ComplexArray, b: ComplexArray) -> float:
    """The inner product of two canvases in the fine band, from their half spectra."""
    return float(np.vdot((a * WEIGHT).view(np.float32), b.view(np.float32)))


def _peak(a: ComplexArray, b: ComplexArray, reach: int) -> tuple[float, int, int]:
    """The highest inner product of a with b shifted by (dy, dx): b(p + d) is laid on a(p)."""
    product = fft.irfft2(np.conj(a) * b * FINE_BAND**2, s=(CANVAS, CANVAS))
    near = np.arange(-reach, reach + 1)
    window = product[near[:, None], near[None]]
    at = int(window.argmax())
    return float(window.flat[at]), at // len(near) - reach, at % len(near) - reach


_Y, _X = np.meshgrid(*[(np.arange(CANVAS // 2) - (CANVAS // 2 - 1) / 2) / 32] * 2, indexing="ij")


def _refined(
    target: FloatArray, image: FloatArray, matrix: Matrix, offset: Matrix, rounds: int = 6
) -> tuple[Matrix, Matrix]:
    """An affine registration, improved by Gauss-Newton steps (Lucas and Kanade 1981).

    Args:
        target: (h, h) half-size canvas.
        image: the half-size canvas that is moved.
        matrix: see `_warped`.
        offset: see `_warped`, in pixels of the whole canvas.
        rounds: steps at most.
    """
    offset = offset / 2
    middle = np.full(2, (CANVAS // 2 - 1) / 2)
    for _ in range(rounds):
        seen = warped(image, matrix, offset)
        down, right = np.zeros_like(seen), np.zeros_like(seen)
        down[1:-1], right[:, 1:-1] = (seen[2:] - seen[:-2]) / 2, (seen[:, 2:] - seen[:, :-2]) / 2
        inside = (seen != 0) & (target != 0)
        inside[:2] = inside[-2:] = inside[:, :2] = inside[:, -2:] = False
        y, x, gy, gx = _Y[inside], _X[inside], down[inside], right[inside]
        slopes = np.stack((gy, gy * y, gy * x, gx, gx * y, gx * x)).astype(np.float64)
        normal = slopes @ slopes.T
        normal += np.eye(6) * (1e-3 * np.trace(normal) + 1e-9)
        step = np.linalg.solve(normal, slopes @ np.clip((target - seen)[inside], -1, 1))
        linear = np.array([[step[1], step[2]], [step[4], step[5]]]) / 32
        offset = offset + matrix @ (step[[0, 3]] - linear @ middle)
        matrix = matrix @ (np.eye(2) + linear)
        if np.abs(step).max() < 0.02:
            break
    return matrix, offset * 2
