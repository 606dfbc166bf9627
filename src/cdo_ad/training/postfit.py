"""After the apprentice's training: branches and thresholds of each category, and the run's files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import save
from torch import Tensor

from cdo_ad import bundle as bundles
from cdo_ad.calibration import Calibration
from cdo_ad.config import Config
from cdo_ad.data.defects import Defects
from cdo_ad.data.store import ImageStore
from cdo_ad.files import write_json
from cdo_ad.inference.calibrate import score_images
from cdo_ad.inference.engines.torch import TorchEngine
from cdo_ad.method.density import whole_image
from cdo_ad.method.fit import FitSettings, LeftOut, fit_branches
from cdo_ad.method.model import AnomalyModel
from cdo_ad.progress import progress_bar
from cdo_ad.provenance import DataRecord, Provenance, revision, versions
from cdo_ad.training.checkpoint import Work
from cdo_ad.training.material import Material

__all__ = ["fit_and_calibrate", "write_model"]


class _Places:
    """Some of a store's images, as `cdo_ad.method.fit.ImageSource`."""

    def __init__(self, store: ImageStore, places: Sequence[int]) -> None:
        self.store, self.places = store, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        return self.store[self.places[index]]


def fit_and_calibrate(
    model: AnomalyModel, store: ImageStore, material: Material, defects: Defects | None, config: Config
) -> Calibration:
    """Fit the branches of each category and set its thresholds; leaves the model in eval mode.

    Args:
        model: trained, on its device.
        store: the good images of `material`.
        material: their categories, groups and folds.
        defects: labelled defects, of any category.
        config: the settings.

    Raises:
        ConfigError: from `fit_branches`.
        CalibrationError: a score that is not a number.
    """
    model.eval()
    numbers = material.numbers
    places = [np.flatnonzero(numbers == number).tolist() for number in range(len(material.categories))]
    contexts = [_contexts(model, _Places(store, own), config.batch_size) for own in places] if len(places) > 1 else []
    if contexts:
        model.fit_categories(contexts)
    scores: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    for number, (name, own) in enumerate(zip(material.categories, places, strict=True)):
        left_out = _fit(
            model, number, _Places(store, own), material.folds(own, config), _of(model, defects, number), config
        )
        scores[name] = (left_out.scores.tolist(), left_out.maxima.tolist())
    if config.calibration == "held-out":
        found = score_images(TorchEngine(model, model.mean.device), material.held_out)
        of = [number for _, number in material.held_out]
        for number, name in enumerate(material.categories):
            own_scores = [each for each, at in zip(found, of, strict=True) if at == number]
            scores[name] = ([score for score, _ in own_scores], [largest for _, largest in own_scores])
    return Calibration.fit(scores, config.false_alarm_rate, method=config.calibration)


def _fit(
    model: AnomalyModel,
    number: int,
    images: _Places,
    folds: np.ndarray,
    defects: tuple[Tensor, Tensor] | None,
    config: Config,
) -> LeftOut:
    which = f" of {model.spec.categories[number]}" if len(model.spec.categories) > 1 else ""
    settings = FitSettings(config.fusion_weights, config.defect_head_weight, config.seed)
    with progress_bar() as bar:
        task = bar.add_task(f"fitting the branches{which}", total=len(images), note="")
        return fit_branches(
            model, number, images, folds, settings, defects,
            lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip


@torch.no_grad()
def _contexts(model: AnomalyModel, images: _Places, batch_size: int) -> Tensor:
    """(N, Q) what tells a category apart, of each image."""
    found = []
    for start in range(0, len(images), batch_size):
        planes = torch.stack([images[i] for i in range(start, min(start + batch_size, len(images)))])
        found.append(whole_image(model.expert(model.normalize(planes.to(model.mean.device)))))
    return torch.cat(found)


@torch.no_grad()
def _of(model: AnomalyModel, defects: Defects | None, number: int) -> tuple[Tensor, Tensor] | None:
    """The labelled defects that show a category, as the model recognises them."""
    if defects is None:
        return None
    device = model.mean.device
    shown = torch.cat(
        [model.choose(model.expert(model.normalize(part.to(device)))).cpu() for part in torch.split(defects.images, 16)]
    )
    own = shown == number
    return (defects.images[own], defects.masks[own]) if bool(own.any()) else None


def write_model(
    out: Path,
    model: AnomalyModel,
    config: Config,
    data: DataRecord,
    calibration: Calibration,
    fabric: Fabric | None = None,
    work: Work | None = None,
) -> None:
    """Write a run folder; the caller holds its lock.

    Args:
        out: the folder.
        model: fitted; it is moved to the CPU.
        config: the settings.
        data: what it was made from.
        calibration: of its scores.
        fabric: says on what it was trained; None for the CPU.
        work: whose logs go with it.

    Raises:
        BundleError: `out` holds something else than a run.
        OutputError: the folder cannot be written to.
    """
    heads = tuple(n for i, n in enumerate(model.spec.categories) if model.branches(i).defect_head is not None)
    # a copy of each tensor: parts that share memory cannot be saved
    weights = save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
    digest = hashlib.sha256(weights).hexdigest()
    manifest = bundles.Manifest(
        settings=config,
        model=model.spec.model_copy(update={"defect_heads": heads}),
        weights_sha256=digest,
        provenance=Provenance(
            data=data,
            seed=config.seed,
            device="cpu" if fabric is None else str(fabric.device),
            devices=1 if fabric is None else fabric.world_size,
            versions=versions(),
            revision=revision(),
        ),
    )
    with bundles.write_run(out) as folder:
        (folder / bundles.MODEL).write_bytes(weights)
        write_json(folder / bundles.CALIBRATION, calibration.model_copy(update={"weights_sha256": digest}).to_json())
        write_json(folder / bundles.CONFIG, manifest.to_json())
        if work is not None:
            work.move_logs(folder)
