"""Has the stream of images changed since the calibration? A conformal test martingale on the p-values.

As long as new good images are exchangeable with those of the calibration, their p-values are (nearly) uniform and
independent, and betting against that cannot win: a martingale that starts at 1 ever reaches 1 / alpha with probability
at most alpha (Ville's inequality), however long the stream is. So an alarm at 1 / alpha falsely accuses at most a share
alpha of good streams, over their whole length.

- The p-values are smoothed (Vovk, Gammerman, Shafer 2005): p = (#{s_i > s} + u (1 + #{s_i = s})) / (n + 1), u uniform,
  which makes them exactly uniform. Each new score joins the reference for the next one: only then are the p-values of
  one stream independent of each other, which Ville's inequality needs. The reference starts with the calibration.
- The bet is the simple mixture of power martingales, the integral over e in [0, 1] of prod_i e p_i^(e - 1). It wins
  when p-values become small, that is when scores rise: darker light, a dirty lens, worn tools, or many defects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdo_ad.conformal import CategoryCalibration
from cdo_ad.errors import ConfigError

__all__ = ["Drift", "DriftTest", "drift"]

BETS = 100
"""Points of the integral over e (midpoint rule): each is a martingale, and so is their mean, exactly."""


class DriftTest:
    """The martingale, one score at a time."""

    def __init__(self, calibration: CategoryCalibration | Sequence[float], alpha: float = 0.01, seed: int = 0) -> None:
        """Start at 1.

        Args:
            calibration: of the images' category (`Calibration.of`), or scores of good images that the detector has
                not seen.
            alpha: the share of good streams that may be accused falsely, in (0, 1).
            seed: of the numbers that break ties; the same seed and stream give the same answer.

        Raises:
            ConfigError: alpha out of its range.
        """
        if not 0 < alpha < 1:
            raise ConfigError(f"alpha must lie between 0 and 1, got {alpha}: 0.01 is usual")
        scores = calibration.one_of_each() if isinstance(calibration, CategoryCalibration) else calibration
        self.alpha = alpha
        self._reference = np.sort(np.asarray(scores, dtype=np.float64))
        self._random = np.random.default_rng(seed)
        self._powers = (np.arange(BETS) + 0.5) / BETS
        self._logs = np.zeros(BETS)

    def update(self, score: float) -> float:
        """Bet on the next image.

        Args:
            score: its image score, finite.

        Returns:
            The natural logarithm of the martingale; above log(1 / alpha) the stream has drifted.
        """
        n = len(self._reference)
        above = n - int(np.searchsorted(self._reference, score, side="right"))
        place = int(np.searchsorted(self._reference, score, side="left"))
        equal = n - above - place
        p = (above + self._random.uniform() * (1 + equal)) / (n + 1)
        self._reference = np.insert(self._reference, place, score)
        self._logs += np.log(self._powers) + (self._powers - 1) * np.log(max(p, 1e-300))
        largest = float(self._logs.max())
        return largest + float(np.log(np.exp(self._logs - largest).mean()))

    @property
    def limit(self) -> float:
        """log(1 / alpha)."""
        return -float(np.log(self.alpha))


@dataclass(frozen=True)
class Drift:
    """What the test says of a stream."""

    drifted: bool
    """The martingale reached 1 / alpha somewhere."""
    first: int | None
    """Index of the image at which it first did; None if never."""
    alpha: float
    log10: tuple[float, ...]
    """Decimal logarithm of the martingale after each image."""

    @property
    def sentence(self) -> str:
        """One plain line."""
        n = len(self.log10)
        if self.first is None:
            return (
                f"no drift: {n} images look like those of the calibration (evidence 10^{max(self.log10):.1f} at most)"
            )
        return (
            f"drift at image {self.first + 1} of {n}: scores have risen against the calibration "
            f"(evidence 10^{max(self.log10):.1f}; a stream without drift reaches {1 / self.alpha:g} with a probability "
            f"of {self.alpha:g} at most): look at camera and light, then calibrate or train again"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "drifted": self.drifted,
            "first": self.first,
            "alpha": self.alpha,
            "n": len(self.log10),
            "sentence": self.sentence,
            "log10_martingale": list(self.log10),
        }


def drift(
    calibration: CategoryCalibration | Sequence[float], scores: Sequence[float], alpha: float = 0.01, seed: int = 0
) -> Drift:
    """Test a stream of scores, in the order of the images.

    Args:
        calibration: see `DriftTest`.
        scores: (m,) image scores, m >= 1.
        alpha: see `DriftTest`.
        seed: see `DriftTest`.

    Raises:
        ConfigError: alpha out of its range, or no score.
    """
    if not len(scores):
        raise ConfigError("a drift test needs at least one image: name a folder with images")
    test = DriftTest(calibration, alpha, seed)
    logs = [test.update(score) for score in scores]
    first = next((i for i, value in enumerate(logs) if value >= test.limit), None)
    return Drift(first is not None, first, alpha, tuple(value / float(np.log(10)) for value in logs))
