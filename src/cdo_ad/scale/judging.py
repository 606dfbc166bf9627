"""One process that judges: the model is loaded once, then a fragment at a time becomes a part of the results."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdo_ad.data.files import reason
from cdo_ad.errors import CdoError, ImageError
from cdo_ad.inference.detector import Detector, load
from cdo_ad.inference.items import Item
from cdo_ad.scale.parts import to_part, write_part
from cdo_ad.scale.reading import read_images
from cdo_ad.scale.sources import Fragment
from cdo_ad.scale.storage import Storage
from cdo_ad.types import Prediction

__all__ = ["Judge", "Plan", "judge"]


@dataclass(frozen=True)
class Plan:
    """What each process needs to know."""

    run: Path
    source: str
    out: str
    category: str | None
    backend: str
    device: str
    threads: int
    """Of the CPU."""
    options: Mapping[str, Any] | None
    """Of fsspec, for both addresses."""
    call: str
    """Of `Results`: whose parts these are."""


class Judge:
    """Lives in a process of its own; never raises, since Ray would start it again and again: it answers."""

    def __init__(self, plan: Plan) -> None:
        """Load the model."""
        self._plan = plan
        self._problem: CdoError | None = None
        try:
            self._detector = loaded(plan)
            self._source, self._out = Storage(plan.source, plan.options), Storage(plan.out, plan.options)
        except CdoError as error:
            self._problem = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Judge a fragment and write its part.

        Args:
            row: `fragment`, pickled.

        Returns:
            Numbers of images, of anomalous and of failed ones; `error` and its class where the fragment was not judged.
        """
        answer: dict[str, Any] = {"images": 0, "anomalous": 0, "failed": 0, "error": "", "kind": ""}
        fragment: Fragment = pickle.loads(row["fragment"])
        answer["id"] = fragment.id
        try:
            if self._problem is not None:
                raise self._problem
            images = read_images(fragment, self._source, self._plan.threads)
            part = to_part(judge(self._detector, images, self._plan.category))
            write_part(self._out, fragment, part.data, self._plan.call)
        except Exception as error:
            kind = type(error).__name__ if isinstance(error, CdoError) else ""
            return {**answer, "error": str(error) if kind else f"{fragment.uri}: {reason(error)}", "kind": kind}
        return {**answer, "images": part.images, "anomalous": part.anomalous, "failed": part.failed}


def loaded(plan: Plan) -> Detector:
    """The detector on the plan's number of threads; raises as `cdo_ad.load`."""
    detector = load(
        plan.run, backend=plan.backend, device=plan.device, mode="throughput", threads=plan.threads
    )  # fmt: skip
    if detector.engine.name.startswith("torch"):
        import torch

        torch.set_num_threads(plan.threads)
    return detector


def judge(detector: Detector, images: Iterator[tuple[str, Any]], category: str | None) -> Iterator[dict[str, Any]]:
    """A row of the results for each image, in order."""
    names: list[str] = []

    def items() -> Iterator[Item]:
        for name, image in images:
            names.append(name)
            yield Item(name, image, category)

    for number, found in enumerate(detector.predict_stream(items())):
        name, names[number] = names[number], ""
        if isinstance(found, ImageError):
            yield {"path": name, "error": str(found)}
        else:
            yield {"path": name, **_columns(found[1])}


def _columns(prediction: Prediction) -> dict[str, Any]:
    regions = [
        dict(zip(("x", "y", "width", "height", "score"), (*region.box, region.score), strict=True))
        for region in prediction.regions
    ]
    return {
        "score": prediction.score,
        "p_value": prediction.p_value,
        "anomalous": prediction.anomalous,
        "sentence": prediction.sentence,
        "category": prediction.category,
        "regions": regions,
        "error": None,
    }
