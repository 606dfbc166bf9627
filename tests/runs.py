"""A run folder with random weights, made in a second: what the engines are tested with."""

from __future__ import annotations

from pathlib import Path

import torch

import fakes
from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.calibration import Calibration
from cdo_ad.config import Config
from cdo_ad.inference.detector import calibration_scores
from cdo_ad.inference.engines.torch import TorchRuntime
from cdo_ad.method.network import CdoNetwork
from cdo_ad.training.job import write_run


def make_run(folder: Path, *, size: tuple[int, int] = (64, 96), images: int = 10, score_top: float = 0.0) -> Bundle:
    """`folder`/run and its calibration images in `folder`/data."""
    config = Config(
        backbone="resnet18", weights="none", image_height=size[0], image_width=size[1], blur_sigma=1.5,
        score_top=score_top, false_alarm_rate=0.1, normalize_brightness=True,
    )  # fmt: skip
    data = fakes.make_mvtec(folder / "data", train=images, good=1, defective=1)
    torch.manual_seed(0)
    network = CdoNetwork.from_config(config).eval()
    names = [f"train/good/{i:03d}.png" for i in range(images)]
    calibration = Calibration.fit(*calibration_scores(TorchRuntime(network), [data / name for name in names]), 0.1)
    provenance = {
        "data": {"root": str(data), "category": "", "fingerprint": "f" * 64, "fit": [], "calibration": names},
        "revision": None,
    }
    run = folder / "run"
    run.mkdir()
    write_run(run, network, config, provenance, calibration)
    return read_bundle(run)
