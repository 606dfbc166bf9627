"""The drift light of each product: green, or red from the image on at which its stream had changed."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cdo_ad.inference.detector import Detector
from cdo_ad.inference.drift import DriftTest
from cdo_ad.server.metrics import Metrics
from cdo_ad.server.serving.models import Model, ModelId

__all__ = ["DriftLights", "Light"]

LONGEST = 5000
"""Images after which the test starts anew: it remembers every score."""


@dataclass(frozen=True)
class Light:
    """What the drift test says of a product's stream."""

    state: str
    """`green`, or `red` once the evidence reached the limit; it stays red until somebody resets it."""
    images: int
    evidence: float
    """Decimal logarithm of the martingale; `limit` is where the light turns red."""
    limit: float
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


class _Stream:
    def __init__(self, detector: Detector, alpha: float) -> None:
        self._detector, self._alpha = detector, alpha
        self._tests: dict[str, tuple[DriftTest, int]] = {}
        self.images, self.evidence, self.drifted_at = 0, 0.0, 0

    def update(self, score: float, category: str) -> None:
        test, count = self._tests.get(category, (None, 0))
        if test is None or count >= LONGEST:
            test, count = DriftTest(self._detector.calibration.of(category), self._alpha, seed=self.images), 0
        logarithm = test.update(score)
        self._tests[category] = test, count + 1
        self.images += 1
        self.evidence = logarithm / float(np.log(10))
        if logarithm >= test.limit and not self.drifted_at:
            self.drifted_at = self.images


class DriftLights:
    """One test for each category of each product's active version; safe to call from any thread."""

    def __init__(self, alpha: float, metrics: Metrics) -> None:
        """Accuse at most a share `alpha` of good streams falsely."""
        self._alpha, self._metrics = alpha, metrics
        self._streams: dict[str, tuple[ModelId, _Stream]] = {}
        self._lock = threading.Lock()

    def update(self, model: Model, score: float, category: str) -> None:
        """Take the next score of a product's stream; another version starts anew."""
        product = model.id.product
        with self._lock:
            known, stream = self._streams.get(product, (None, None))
            if stream is None or known != model.id:
                stream = _Stream(model.detector, self._alpha)
                self._streams[product] = model.id, stream
            stream.update(score, category)
            self._metrics.drift.labels(product).set(stream.evidence)
            self._metrics.drifted.labels(product).set(float(stream.drifted_at > 0))

    def light(self, product: str) -> Light:
        """What is known of a product's stream."""
        limit = -float(np.log10(self._alpha))
        with self._lock:
            stream = self._streams.get(product, (None, None))[1]
            if stream is None:
                return Light("green", 0, 0.0, limit, "no image has been inspected yet")
            if stream.drifted_at:
                return Light(
                    "red", stream.images, stream.evidence, limit,
                    f"scores have risen since the calibration (seen at image {stream.drifted_at}): look at camera and "
                    "light, then calibrate or teach again",
                )  # fmt: skip
            return Light(
                "green", stream.images, stream.evidence, limit,
                f"{stream.images} images look like those of the calibration",
            )  # fmt: skip

    def reset(self, product: str) -> None:
        """Start a product's test anew, after somebody looked at camera and light."""
        with self._lock:
            self._streams.pop(product, None)
            self._metrics.drifted.labels(product).set(0)
