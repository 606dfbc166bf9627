"""Golden samples: images whose decision is known. A version that judges one wrong is refused, or warned of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cdo_ad.server.errors import ConflictError, NotFoundError
from cdo_ad.server.serving.decoding import decode
from cdo_ad.server.serving.models import ModelId, Models
from cdo_ad.server.store.audit import AuditTrail
from cdo_ad.server.store.catalogue import Catalogue
from cdo_ad.server.store.images import ImageStore

__all__ = ["Activation", "GoldenResult"]


@dataclass(frozen=True)
class GoldenResult:
    """What a version says of a golden sample."""

    id: int
    note: str
    anomalous: bool
    """What it must say."""
    right: bool
    score: float | None
    p_value: float | None
    error: str = ""
    """Where the sample cannot be judged."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


class Activation:
    """Makes versions judge, after the golden samples."""

    def __init__(self, catalogue: Catalogue, models: Models, images: ImageStore, audit: AuditTrail) -> None:
        """Use the parts of a server."""
        self._catalogue, self._models, self._images, self._audit = catalogue, models, images, audit

    def judge(self, product: str, version: int) -> list[GoldenResult]:
        """Judge all golden samples of a product by a version; raises as `Models.get`."""
        samples = self._catalogue.golden(product)
        if not samples:
            return []
        detector = self._models.get(ModelId(product, version)).at_rate(self._models.rate(product))
        found = []
        for each in samples:
            known = {"id": each["id"], "note": each["note"], "anomalous": each["anomalous"]}
            try:
                image = decode(self._images.read(each["image"]), each["note"])
            except NotFoundError as error:
                found.append(GoldenResult(**known, right=False, score=None, p_value=None, error=str(error)))
                continue
            seen = detector.predict(image, regions=False)
            right = seen.anomalous == each["anomalous"]
            found.append(GoldenResult(**known, right=right, score=seen.score, p_value=seen.p_value))
        return found

    def activate(self, product: str, version: int, by: str, action: str = "activate") -> list[GoldenResult]:
        """Make a version judge.

        Returns:
            What it says of the golden samples; where some are wrong, the product's rule was to warn.

        Raises:
            NotFoundError: no such product or version. BundleError: its run cannot be loaded.
            ConflictError: it judges a golden sample wrong, and the product's rule is to block.
        """
        about = self._catalogue.product(product)
        self._catalogue.version(product, version)
        self._models.get(ModelId(product, version))
        results = self.judge(product, version)
        wrong = [each for each in results if not each.right]
        if wrong and about.golden_rule == "block":
            self._audit.add(by, "activation blocked", product=product, version=version, wrong=len(wrong))
            raise ConflictError(
                f"version {version} was not activated: it judges {len(wrong)} of {len(results)} golden samples wrong",
                golden=[each.to_json() for each in results],
            )
        self._catalogue.activate(product, version, by)
        self._models.refresh()
        self._audit.add(by, action, product=product, version=version, golden=len(results), wrong=len(wrong))
        return results
