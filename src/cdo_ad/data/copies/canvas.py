"""An image on a small canvas, blind to exposure and local contrast; spectra, warps and the centre of a part."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

__all__ = [
    "CANVAS", "COARSE_BAND", "FINE", "FINE_BAND", "WEIGHT", "ComplexArray", "FloatArray", "IntArray", "Matrix", "blur",
    "cycles", "prepared", "spectrum", "warped",
]  # fmt: skip

FloatArray = npt.NDArray[np.float32]
ComplexArray = npt.NDArray[np.complex64]
IntArray = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.float64]

CANVAS = 128
"""Pixels: images are compared on a square of this side."""
FINE = (0.03, 0.30)
"""Cycles per pixel: the band that verifies."""
COARSE = (0.02, 0.11)
"""Cycles per pixel: the band that finds angles."""
PLAIN_GROUND = 0.75
"""Of the variance of brightness, what a threshold explains where a part lies on a plain ground; textures reach 0.7."""

cycles = np.hypot(np.fft.fftfreq(CANVAS)[:, None], np.fft.rfftfreq(CANVAS)[None])


def _band(low: float, high: float) -> FloatArray:
    values = np.exp(-0.5 * (cycles / high) ** 4) * (1 - np.exp(-0.5 * (cycles / low) ** 4))
    return np.asarray(values, dtype=np.float32)


FINE_BAND, COARSE_BAND = _band(*FINE), _band(*COARSE)
_SIDES = np.where((np.arange(CANVAS // 2 + 1) % (CANVAS // 2)) == 0, 1, 2)
WEIGHT = np.asarray(FINE_BAND**2 * _SIDES / CANVAS**2, dtype=np.float32)
"""Of each bin of a half spectrum in a sum over the canvas (Parseval)."""


def prepared(gray: npt.NDArray[np.uint8]) -> tuple[FloatArray, Matrix]:
    """The image on the canvas, blind to exposure and local contrast, and its part's centre on the canvas (y, x)."""
    height, width = gray.shape
    top, left = (CANVAS - height) // 2, (CANVAS - width) // 2
    logs = np.log(gray.astype(np.float32) + 8)  # 8 of 255: the noise of dark pixels does not matter
    band = blur(logs, 0.7) - blur(logs, 5.0)
    contrast = np.sqrt(np.maximum(blur(band * band, 6.0), 0))
    band = np.clip(band / (contrast + 0.3 * np.quantile(contrast, 0.9) + 0.002), -2, 2)
    taper = _ramp(height)[:, None] * _ramp(width)[None]
    canvas = np.zeros((CANVAS, CANVAS), dtype=np.float32)
    canvas[top : top + height, left : left + width] = (band - (band * taper).sum() / taper.sum()) * taper
    return canvas, _centre(logs) + np.array([top, left])


def blur(values: FloatArray, sigma: float) -> FloatArray:
    """A Gaussian blur, (h, w); the edge pixels repeat."""
    blurred: FloatArray = ndimage.gaussian_filter(values, sigma, mode="nearest", truncate=3.0)
    return blurred


def _ramp(length: int, width: int = 6) -> FloatArray:
    """1 with ramps of `width` pixels to 0 at both ends, so that a border is no structure."""
    rise = (np.arange(length, dtype=np.float32) + 0.5) / width
    ramp: FloatArray = np.minimum(1, np.minimum(rise, rise[::-1]))
    return ramp


def _centre(logs: FloatArray) -> Matrix:
    """The centre (y, x) of a part on a plain ground; the image's where there is none."""
    height, width = logs.shape
    edge = max(2, min(height, width) // 20)
    border = np.ones((height, width), dtype=np.bool_)
    border[edge:-edge, edge:-edge] = False
    distance = blur(logs - np.float32(np.median(logs[border])), 1.5)
    threshold, explained = _otsu(np.abs(distance))
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    if explained < PLAIN_GROUND or (np.abs(distance) > threshold)[border].mean() > 0.3:
        return middle
    best, mask = 0.02 * height * width, None  # a part is no speck
    for side in (distance > threshold, distance < -threshold):  # a shadow or a dark edge is not one with a bright part
        labels, count = ndimage.label(side)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        sizes[0] = 0
        sizes[np.unique(labels[border])] //= 4  # what reaches the border is rather the ground
        if sizes.max() > best:
            best, mask = float(sizes.max()), labels == int(sizes.argmax())
    return middle if mask is None else np.array(ndimage.center_of_mass(ndimage.binary_fill_holes(mask)))


def _otsu(values: FloatArray) -> tuple[float, float]:
    """The threshold that parts a histogram best (Otsu 1979), and the share of the variance that it explains."""
    counts, edges = np.histogram(values, 64)
    below, total = np.cumsum(counts), int(counts.sum())
    sums = np.cumsum(counts * (edges[1:] + edges[:-1]) / 2)
    between = np.square(sums[-1] * below - sums * total) / np.maximum(below * (total - below), 1)
    at = int(between.argmax())
    return float(edges[1:][at]), float(between[at] / total**2 / max(float(values.var()), 1e-12))


def spectrum(canvas: npt.NDArray[Any]) -> ComplexArray:
    """The half spectrum of a canvas."""
    found: ComplexArray = fft.rfft2(canvas.astype(np.float32)).astype(np.complex64, copy=False)
    return found


def warped(canvas: FloatArray, matrix: Matrix, offset: Matrix) -> FloatArray:
    """The canvas at `matrix @ p + offset` for each p (y, x), 0 outside."""
    moved: FloatArray = ndimage.affine_transform(canvas, matrix, offset, order=1, mode="constant")
    return moved
