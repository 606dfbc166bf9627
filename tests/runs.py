"""A run folder with random networks, made in a second: what engines and pages are tested with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fakes
from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.calibration import Calibration
from cdo_ad.config import Config
from cdo_ad.conformal import GoodScores
from cdo_ad.data.split import content_digest
from cdo_ad.data.store import ImageStore
from cdo_ad.inference.calibrate import score_images
from cdo_ad.inference.engines.torch import TorchEngine
from cdo_ad.method.fit import FitSettings, fit_branches
from cdo_ad.method.model import AnomalyModel
from cdo_ad.provenance import DataRecord, ImageRecord
from cdo_ad.spec import CategorySpec, ModelSpec
from cdo_ad.training.postfit import write_model

DEFAULT = ("level 3", "level 2", "bank", "intensity")


def category(*branches: str, name: str = "") -> CategorySpec:
    """Branches over few images."""
    paper = branches == ("disagreement",)
    return CategorySpec(
        name=name, branches=branches, standardized=not paper, components=0 if paper else 3,
        intensity_components=0 if paper else 1, centres=1 if paper else 30, baseline=not paper,
    )  # fmt: skip


def tinted(image: np.ndarray, number: int) -> np.ndarray:
    """An image as those of the category of that number: the later, the bluer."""
    divisor = np.array([1 + 3 * number, 1 + 3 * number, 1], np.uint8)
    return image // divisor


def make_run(
    folder: Path,
    *,
    size: tuple[int, int] = (64, 96),
    images: int = 10,
    score_top: float = 0.0,
    categories: Sequence[CategorySpec] = (category("disagreement"),),
    defects: int = 0,
) -> Bundle:
    """`folder`/run and its good images in `folder`/data; the paper's form where nothing else is said.

    Images of later categories are `tinted`. `defects`: so many labelled ones are learned from.
    """
    config = Config(
        backbone="resnet10t", weights="none", image_height=size[0], image_width=size[1], blur_sigma=1.5,
        score_top=score_top, false_alarm_rate=0.1, normalize_brightness=True, branches=categories[0].branches,
        fusion_weights="equal", defect_head_weight=0.3 if defects else 0.0,
        calibration="cross" if categories[0].standardized else "held-out",
        baseline_share=0.5 if categories[0].baseline else 0.0,
    )  # fmt: skip
    data, torch_state = folder / "data", torch.get_rng_state()
    torch.manual_seed(0)
    model = AnomalyModel(ModelSpec.from_config(config, categories)).eval()
    torch.set_rng_state(torch_state)
    records: list[ImageRecord] = []
    for number, spec in enumerate(categories):
        fakes.make_mvtec(data / spec.name, train=images, good=1, defective=max(1, defects))
        for path in sorted((data / spec.name / "train" / "good").glob("*.png")):
            if number:
                Image.fromarray(tinted(np.asarray(Image.open(path)), number)).save(path)
            name = path.relative_to(data).as_posix()
            records.append(ImageRecord(name=name, digest=content_digest(path), category=spec.name, group=len(records)))
    own = [[data / record.name for record in records if record.category == spec.name] for spec in categories]
    stores = [ImageStore(paths, size) for paths in own]
    if len(categories) > 1:
        model.fit_categories([[torch.stack([store[i] for i in range(images)])] for store in stores])
    scores = {}
    for number, (spec, store) in enumerate(zip(categories, stores, strict=True)):
        if spec.standardized:
            found = fit_branches(
                model, number, store, np.arange(images), 
                FitSettings("equal", config.defect_head_weight, baseline_share=config.baseline_share),
                defects=_defects(data, size, defects) if defects else None,
            )  # fmt: skip
            scores[spec.name] = GoodScores(found.scores.tolist(), found.maxima.tolist())
        else:
            pairs = score_images(TorchEngine(model), [(path, number) for path in own[number]])
            scores[spec.name] = GoodScores(*zip(*pairs, strict=True))
    plain = not categories[0].standardized
    record = DataRecord(
        root=str(data), category="", fingerprint="f" * 64, images=() if plain else tuple(records),
        held_out=tuple(records) if plain else (), split="made by a test",
        units=dict.fromkeys([spec.name for spec in categories], "image"),
    )  # fmt: skip
    calibration = Calibration.fit(scores, 0.1, method="held-out" if plain else "cross")
    write_model(folder / "run", model, config, record, calibration)
    return read_bundle(folder / "run")


def _defects(data: Path, size: tuple[int, int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    store = ImageStore([data / "test" / "spot" / f"{i:03d}.png" for i in range(count)], size)
    masks = torch.zeros(count, *size, dtype=torch.bool)
    masks[:, size[0] // 3 : 2 * size[0] // 3, size[1] // 3 : 2 * size[1] // 3] = True
    return torch.stack([store[i] for i in range(count)]), masks
