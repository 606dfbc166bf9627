"""The whole job on the built-in products: draw, train, calibrate, evaluate, show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdo_ad import recipes
from cdo_ad.data.readers.layout import read_dataset
from cdo_ad.demo.products import PRODUCTS, make_dataset
from cdo_ad.evaluation.evaluate import Evaluation, evaluate
from cdo_ad.evaluation.judge import Judged, judge
from cdo_ad.evaluation.results import write_results
from cdo_ad.files import writing
from cdo_ad.inference.detector import Detector, load
from cdo_ad.inference.overlay import side_by_side
from cdo_ad.inference.predict import predict_files
from cdo_ad.training.train import train
from cdo_ad.types import Sample

__all__ = ["Outcome", "run_demo"]


@dataclass(frozen=True)
class Outcome:
    """What the demo shows of one product."""

    product: str
    sentence: str
    """What the thresholds promise."""
    evaluation: Evaluation
    run: Path
    sheet: Path
    """One example of each defect and a good image: image, heat map, true mask."""
    overlays: Path


def run_demo(out: Path, *, quick: bool = False, device: str = "auto", seed: int = 0) -> Iterator[Outcome]:
    """Draw the images of each product, train on the good ones, evaluate, write overlays; yields an outcome for each.

    Args:
        out: folder for `data/`, `runs/`, `overlays/` and the example sheets.
        quick: a smoke test of seconds: few images, seen small, and an equal say of all branches.
        device: see `cdo_ad.train`.
        seed: of the drawing and the training.

    Raises:
        DataError: `out` holds other images. OutputError: `out` cannot be written to. What `cdo_ad.train` raises.
    """
    for product in PRODUCTS:
        counts = (
            {"train": 24, "test_good": 4, "per_type": 1} if quick else {"train": 120, "test_good": 40, "per_type": 8}
        )
        data = make_dataset(out / ("data-quick" if quick else "data"), product, seed=seed, **counts)
        config = recipes.lite0().replace(seed=seed)
        if quick:
            config = config.replace(image_height=128, image_width=128, fusion_weights="equal")
        run = out / "runs" / product
        train(data, run, config, device=device, interrupted="discard")
        detector = load(run, device=device)
        samples = read_dataset(data)
        evaluation = evaluate(detector, samples)
        write_results(run, evaluation, data)
        overlays = out / "overlays" / product
        for _ in predict_files(detector, [data / "test"], overlays):
            pass
        sheet = out / f"{product}.png"
        with writing(sheet):
            Image.fromarray(_sheet(detector, samples)).save(sheet)
        yield Outcome(product, "; ".join(detector.calibration.summary()), evaluation, run, sheet, overlays)


def _sheet(detector: Detector, samples: Sequence[Sample]) -> npt.NDArray[np.uint8]:
    """The first test image of each type, one below the other: image, heat map, true mask."""
    first: dict[str, Sample] = {}
    for sample in samples:
        if sample.split == "test":
            first.setdefault(sample.defect_type, sample)
    rows: list[npt.NDArray[np.uint8]] = []
    for item in judge(detector, list(first.values()), regions=True):
        if isinstance(item, Judged):
            threshold = detector.calibration.of(item.prediction.category).pixel_threshold
            rows.append(side_by_side(item.image, item.prediction, threshold, item.mask))
            rows.append(np.full((4, rows[-1].shape[1], 3), 255, dtype=np.uint8))
    return np.concatenate(rows[:-1])
