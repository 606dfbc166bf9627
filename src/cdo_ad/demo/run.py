"""The whole job on the built-in products: draw, train, calibrate, evaluate, show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cdo_ad import recipes
from cdo_ad.data.decode import read_image, read_mask
from cdo_ad.data.readers.layout import read_dataset
from cdo_ad.demo.products import PRODUCTS, make_dataset
from cdo_ad.evaluation.evaluate import Evaluation, evaluate
from cdo_ad.evaluation.results import write_results
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
    evaluation: Evaluation
    run: Path
    sheet: Path
    """One example of each defect and a good image: image, heat map, true mask."""
    overlays: Path


def run_demo(out: Path, *, quick: bool = False, device: str = "auto", seed: int = 0) -> Iterator[Outcome]:
    """Draw each product's images, train on the good ones, evaluate, write overlays; yields an outcome a product.

    Args:
        out: folder for `data/`, `runs/`, `overlays/` and the example sheets.
        quick: a smoke test of seconds: few images, one epoch.
        device: see `cdo_ad.training.job.train`.
        seed: of the drawing and the training.
    """
    for product in PRODUCTS:
        counts = (
            {"train": 44, "test_good": 4, "per_type": 1} if quick else {"train": 120, "test_good": 40, "per_type": 8}
        )
        data = make_dataset(out / ("data-quick" if quick else "data"), product, seed=seed, **counts)
        config = recipes.lite0().replace(seed=seed)
        if quick:
            config = config.replace(epochs=1)
        run = out / "runs" / product
        train(data, run, config, device=device, interrupted="discard")
        detector = load(run, device=device)
        samples = read_dataset(data)
        evaluation = evaluate(detector, samples)
        write_results(run, evaluation, samples, data)
        overlays = out / "overlays" / product
        for _ in predict_files(detector, [data / "test"], overlays):
            pass
        sheet = out / f"{product}.png"
        _sheet(detector, samples, sheet)
        calibration = detector.calibration
        sentence = (
            f"trained on good images only; threshold for at most {calibration.false_alarm_rate:.0%} false alarms "
            f"from {calibration.images} of them"
        )
        yield Outcome(product, sentence, evaluation, run, sheet, overlays)


def _sheet(detector: Detector, samples: list[Sample], file: Path) -> None:
    first: dict[str, Sample] = {}
    for sample in samples:
        if sample.split == "test":
            first.setdefault(sample.defect_type, sample)
    rows = []
    for sample in first.values():
        image = read_image(sample.path)
        truth = np.zeros(image.shape[:2], bool) if sample.mask_path is None else read_mask(sample.mask_path)
        prediction = detector.predict(image)
        rows.append(
            side_by_side(image, prediction, detector.calibration.of(prediction.category).pixel_threshold, truth)
        )
        rows.append(np.full((4, rows[-1].shape[1], 3), 255, dtype=np.uint8))
    Image.fromarray(np.concatenate(rows[:-1])).save(file)
