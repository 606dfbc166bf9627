"""What a score means, in one line for people."""

from __future__ import annotations

from cdo_ad.calibration import Calibration

__all__ = ["sentence"]

UNUSUAL = 0.2
"""Good images with a p-value of at most this are called unusual."""


def sentence(score: float, calibration: Calibration) -> str:
    """The decision and its ground, e.g. ``unusual but good: only 3 of 42 good images score as high``.

    Args:
        score: of the image.
        calibration: of the detector that gave the score.
    """
    n = len(calibration.scores)
    as_high = round(calibration.p_value(score) * (n + 1)) - 1
    if score > calibration.image_threshold:
        word = "anomalous"
    else:
        word = "unusual but good" if calibration.p_value(score) <= UNUSUAL else "good"
    kind = "good image" if calibration.guaranteed else "altered copy"
    images = kind if n == 1 else "good images" if calibration.guaranteed else "altered copies of good images"
    if as_high == 0:
        return f"{word}: none of {n} {images} scores as high"
    only = "" if word == "good" else "only "
    return f"{word}: {only}{as_high} of {n} {images} {'scores' if as_high == 1 else 'score'} as high"
