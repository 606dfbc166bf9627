"""Detectors in memory: those that judge, and the few others that were asked for last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cdo_ad.errors import BundleError, ConfigError
from cdo_ad.inference.detector import Detector, load
from cdo_ad.server.errors import NotFoundError
from cdo_ad.server.store.catalogue import Catalogue

__all__ = ["Model", "ModelId", "Models"]

OTHERS = 3
"""Detectors kept beside the active and the shadow ones."""
RATES = 64


class ModelId(NamedTuple):
    """A version of a product."""

    product: str
    version: int


@dataclass(frozen=True)
class Model:
    """A version in memory."""

    id: ModelId
    detector: Detector

    def at_rate(self, rate: float | None) -> Detector:
        """Its detector with the thresholds for a rate; None for the run's own.

        Raises:
            CalibrationError: too few good images for the rate.
        """
        return self.detector if rate is None else _at_rate(self.detector, rate)


@lru_cache(RATES)
def _at_rate(detector: Detector, rate: float) -> Detector:
    return detector.at_rate(rate)


class Models:
    """Loads versions when they are first needed; may be called from any thread."""

    def __init__(self, catalogue: Catalogue, backend: str = "auto", device: str = "auto") -> None:
        """Load runs that the catalogue names; `backend` and `device` as in `cdo_ad.load`."""
        self._catalogue, self._backend, self._device = catalogue, backend, device
        self._loaded: OrderedDict[ModelId, Model] = OrderedDict()
        self._rates: dict[str, float | None] = {}
        self._active: dict[str, int] = {}
        self._shadow: dict[str, int] = {}
        self._lock = threading.Lock()  # held for moments only: the event loop waits for it
        self._loading = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        """Read from the catalogue which versions are active, which are shadows, and the rates."""
        products = self._catalogue.products()
        with self._lock:
            self._rates = {p.name: p.rate for p in products}
            self._active = {p.name: p.active for p in products if p.active is not None}
            self._shadow = {p.name: p.shadow for p in products if p.shadow is not None}

    def rate(self, product: str) -> float | None:
        """The false-alarm rate that was set for a product; None for that of its run."""
        return self._rates.get(product)

    def id(self, product: str, version: int | None = None) -> ModelId:
        """Which version is meant.

        Raises:
            NotFoundError: there is no such product, or none of its versions is active.
        """
        if version is not None:
            return ModelId(product, version)
        if product not in self._active:
            self.refresh()  # another process may have activated one
        if product not in self._active:
            self._catalogue.product(product)  # says so where there is none
            raise NotFoundError(f"{product} has no active version: activate one")
        return ModelId(product, self._active[product])

    def shadow(self, product: str) -> ModelId | None:
        """The version that judges without a say, if there is one beside the active one."""
        version = self._shadow.get(product)
        return None if version is None or version == self._active.get(product) else ModelId(product, version)

    def ready(self, model: ModelId) -> Model | None:
        """A version that is in memory; None where it has to be loaded."""
        with self._lock:
            found = self._loaded.get(model)
            if found is not None:
                self._loaded.move_to_end(model)
            return found

    def get(self, model: ModelId) -> Model:
        """A version, loaded if needed, which takes seconds.

        Raises:
            NotFoundError: the product has no such version.
            BundleError: its run folder is gone or damaged. ConfigError: its run looks at depth.
        """
        if (found := self.ready(model)) is not None:
            return found
        with self._loading:
            if (found := self.ready(model)) is not None:  # somebody else loaded it meanwhile
                return found
            version = self._catalogue.version(*model)
            made = Model(model, load(Path(version.run), backend=self._backend, device=self._device))
            if made.detector.bundle is not None:
                made.detector.bundle.require_images_alone("the server")
            with self._lock:
                self._loaded[model] = made
                self._drop_others()
            return made

    def unload(self, product: str) -> None:
        """Drop a product's detectors from memory; the next request loads again."""
        with self._lock:
            for model in [model for model in self._loaded if model.product == product]:
                del self._loaded[model]

    def load_active(self) -> list[str]:
        """Load all active versions and shadows; returns a line for each that cannot be."""
        failures = []
        for ids in (self._active, self._shadow):
            for product, version in ids.items():
                try:
                    self.get(ModelId(product, version))
                except (BundleError, NotFoundError, ConfigError) as error:
                    failures.append(f"{product} version {version} cannot be loaded: {error}")
        return failures

    def _drop_others(self) -> None:
        needed = set(self._active.items()) | set(self._shadow.items())
        others = [model for model in self._loaded if tuple(model) not in needed]
        for model in others[: max(0, len(others) - OTHERS)]:
            del self._loaded[model]
