"""A run folder with random weights, made in a second: what engines and pages are tested with."""

from __future__ import annotations

from pathlib import Path

import torch

import fakes
from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.calibration import Calibration
from cdo_ad.config import Config, ModelSpec
from cdo_ad.conformal import GoodScores
from cdo_ad.inference.calibrate import score_images
from cdo_ad.inference.engines.torch import TorchEngine
from cdo_ad.method.model import AnomalyModel
from cdo_ad.provenance import DataRecord, ImageRecord
from cdo_ad.training.postfit import write_model


def make_run(folder: Path, *, size: tuple[int, int] = (64, 96), images: int = 10, score_top: float = 0.0) -> Bundle:
    """`folder`/run and its calibration images in `folder`/data."""
    config = Config(
        backbone="resnet18", weights="none", image_height=size[0], image_width=size[1], blur_sigma=1.5,
        score_top=score_top, false_alarm_rate=0.1, normalize_brightness=True,
    )  # fmt: skip
    data = fakes.make_mvtec(folder / "data", train=images, good=1, defective=1)
    torch.manual_seed(0)
    model = AnomalyModel(ModelSpec.from_config(config)).eval()
    names = [f"train/good/{i:03d}.png" for i in range(images)]
    scores, maxima = zip(*score_images(TorchEngine(model), [(data / name, 0) for name in names]), strict=True)
    record = DataRecord(
        root=str(data),
        category="",
        fingerprint="f" * 64,
        images=(),
        held_out=tuple(ImageRecord(name=name, digest=name, group=i) for i, name in enumerate(names)),
        split="made by a test",
        units={"": "group"},
    )
    calibration = Calibration.fit({"": GoodScores(scores, maxima)}, 0.1)
    write_model(folder / "run", model, config, record, calibration)
    return read_bundle(folder / "run")
