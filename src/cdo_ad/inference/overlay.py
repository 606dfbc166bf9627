"""Images for people: the heat map over the image, on a scale tied to the threshold, with the regions outlined."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from cdo_ad.types import Float32Array, Prediction

__all__ = ["FULL_SCALE", "heat", "map16", "overlay", "side_by_side"]

FULL_SCALE = 2.0
"""The scale ends at this multiple of the pixel threshold; it is the same for every image of a run."""
# (value / threshold, red, green, blue, opacity): cold colours and little opacity below the threshold, warm above it
SCALE = np.array(
    [
        (0.00, 30, 60, 160, 0.00),
        (0.50, 30, 90, 190, 0.12),
        (1 - 1e-6, 40, 170, 200, 0.35),
        (1.00, 255, 210, 40, 0.50),
        (1.40, 250, 120, 20, 0.60),
        (2.00, 215, 20, 25, 0.70),
    ]
)


def heat(anomaly_map: Float32Array, pixel_threshold: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Colour and opacity of a map on the fixed scale: warm colours begin at the threshold.

    Args:
        anomaly_map: (H, W) float32.
        pixel_threshold: the calibrated one, > 0.

    Returns:
        (H, W, 3) float32 in 0..255 and (H, W, 1) float32 in 0..1.
    """
    level = anomaly_map / max(pixel_threshold, float(np.finfo(np.float32).tiny))
    channels = [np.interp(level, SCALE[:, 0], SCALE[:, i]).astype(np.float32) for i in range(1, 5)]
    return np.stack(channels[:3], axis=-1), channels[3][..., None]


def overlay(image: npt.NDArray[np.uint8], prediction: Prediction, pixel_threshold: float) -> npt.NDArray[np.uint8]:
    """The heat map over the image, regions outlined.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: of this image.
        pixel_threshold: the calibrated one.

    Returns:
        (H, W, 3) uint8 RGB, the image's own size.
    """
    colour, opacity = heat(prediction.anomaly_map, pixel_threshold)
    blended = Image.fromarray((image * (1 - opacity) + colour * opacity).round().astype(np.uint8))
    draw = ImageDraw.Draw(blended)
    width = max(1, round(min(image.shape[:2]) / 200))
    for region in prediction.regions:
        points = [(x, y) for x, y in region.contour]
        if len(points) >= 2:
            draw.line([*points, points[0]], fill=(255, 255, 255), width=width, joint="curve")
    return np.asarray(blended)


def side_by_side(
    image: npt.NDArray[np.uint8], prediction: Prediction, pixel_threshold: float, truth: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.uint8]:
    """Image, overlay and, where known, the true mask beside each other; (H, W * 2 or 3 + gaps, 3) uint8."""
    panels = [image, overlay(image, prediction, pixel_threshold)]
    if truth is not None:
        panels.append(np.repeat(truth[..., None].astype(np.uint8) * 255, 3, axis=2))
    gap = np.full((image.shape[0], 4, 3), 255, dtype=np.uint8)
    joined = [panels[0]]
    for panel in panels[1:]:
        joined += [gap, panel]
    return np.concatenate(joined, axis=1)


def map16(anomaly_map: Float32Array, pixel_threshold: float) -> npt.NDArray[np.uint16]:
    """The map as 16-bit gray on the same fixed scale: 32768 is the threshold, 65535 is `FULL_SCALE` times it.

    Args:
        anomaly_map: (H, W) float32.
        pixel_threshold: the calibrated one.
    """
    level = anomaly_map / (FULL_SCALE * pixel_threshold)
    scaled: npt.NDArray[np.uint16] = (np.clip(level, 0, 1) * 65535).round().astype(np.uint16)
    return scaled
