"""After the apprentice's training: branches and thresholds of each category, and the run's files."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from safetensors.torch import save
from torch import Tensor

from cdo_ad import bundle as bundles
from cdo_ad.calibration import Calibration
from cdo_ad.config import Config
from cdo_ad.conformal import CategoryCalibration, GoodScores
from cdo_ad.data.defects import Defects
from cdo_ad.data.store import ImageStore
from cdo_ad.errors import CdoWarning
from cdo_ad.files import write_json
from cdo_ad.inference.calibrate import score_images
from cdo_ad.inference.engines.tiled import tiled
from cdo_ad.inference.engines.torch import torch_engine
from cdo_ad.method.fit import FitSettings, LeftOut, fit_branches
from cdo_ad.method.gaussian import components_for
from cdo_ad.method.model import AnomalyModel
from cdo_ad.progress import progress_bar
from cdo_ad.provenance import DataRecord, Provenance, revision, versions
from cdo_ad.spec import CategorySpec, ModelSpec
from cdo_ad.training.checkpoint import Work
from cdo_ad.training.material import Material

__all__ = ["fit_and_calibrate", "fitted_spec", "specify", "write_model"]

IntArray = npt.NDArray[np.int64]
MOST_IMAGES = 3000
"""Good images of a category that its branches are fitted on; 1.3 GB of features at 256 x 256."""
MOST_COMPONENTS = 192
INTENSITY_COMPONENTS = 8
LONE = 1.5
"""A good image whose score is so many times the next one's is named where it sets the threshold."""


class _Places:
    """Some of a store's images, as `cdo_ad.method.fit.ImageSource`."""

    def __init__(self, store: ImageStore, places: Sequence[int]) -> None:
        self.store, self.places = store, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        return self.store[self.places[index]]


def specify(config: Config, material: Material, store: ImageStore | None = None) -> ModelSpec:
    """The model that settings and images ask for; its branches are still to be fitted.

    Args:
        config: the settings.
        material: the good images.
        store: of these images, where they are judged in tiles: then tiles count.
    """
    sizes = [min(len(own if store is None else store.items(own)), MOST_IMAGES) for own in _by_category(material)]
    return ModelSpec.from_config(
        config,
        [
            CategorySpec.from_config(
                config,
                name,
                components=min(components_for(n, config.context_share, n), MOST_COMPONENTS),
                intensity_components=min(INTENSITY_COMPONENTS, n // 10) if config.context_share else 0,
                baseline=config.baseline_share > 0 and _shows_parts_again(material, name),
                region=region,
            )
            for name, n, region in zip(material.categories, sizes, material.regions or [""] * len(sizes), strict=True)
        ],
    )


def _shows_parts_again(material: Material, category: str) -> bool:
    """Whether thresholds are for new parts, and each part is seen twice or more on average.

    Only then do good images show that a raised map belongs to a part. Where thresholds are for further images of known
    parts, an image that is unfamiliar as a whole is suspicious.
    """
    parts = [record.group for record in material.record.images if record.category == category]
    return material.record.units[category] == "group" and 2 * len(set(parts)) <= len(parts)


def fit_and_calibrate(
    model: AnomalyModel,
    store: ImageStore,
    material: Material,
    defects: Defects | None,
    config: Config,
    taught: Sequence[int],
) -> Calibration:
    """Fit the branches of each category and set its thresholds; leaves the model in eval mode.

    Args:
        model: trained, on its device.
        store: the good images of `material`.
        material: their categories, groups and folds.
        defects: labelled defects, of any category.
        config: the settings.
        taught: places of the images in `material` that the apprentice learned from.

    Raises:
        ConfigError: from `fit_branches`.
        CalibrationError: a score that is not a number.
    """
    model.eval()
    by_category = _by_category(material)
    if len(by_category) > 1:
        model.fit_categories([_batches(_Places(store, store.items(own)), config.batch_size) for own in by_category])
    scores: dict[str, GoodScores] = {}
    used: list[list[str]] = []
    for number, (name, own) in enumerate(zip(material.categories, by_category, strict=True)):
        items = store.items(own)
        shown = store.source[items]  # the image of each item: itself, or the one that a tile was cut from
        units = material.units(own, name)[np.searchsorted(own, shown)]
        kept = _at_most(units, MOST_IMAGES, config.seed)
        shown, units = shown[kept], np.unique(units[kept], return_inverse=True)[1]
        source, trained = _Places(store, [items[i] for i in kept]), np.isin(shown, taught)
        left_out = _fit(model, number, source, units, trained, _of(model, defects, number), config)
        images, first, of = np.unique(shown, return_index=True, return_inverse=True)
        # an image scores as its worst tile does
        largest, maxima = (_largest(values, of).tolist() for values in (left_out.scores, left_out.maxima))
        scores[name] = GoodScores(largest, maxima, units[first].tolist(), material.record.units[name])
        used.append([material.record.images[i].name for i in images])
    if config.calibration == "held-out":
        found = score_images(tiled(torch_engine(model, model.mean.device), model.spec), material.held_out)
        for number, name in enumerate(material.categories):
            own = [i for i, (_, at) in enumerate(material.held_out) if at == number]
            unit = material.record.units[name]
            counted = [i if unit == "image" else material.record.held_out[i].group for i in own]
            scores[name] = GoodScores([found[i][0] for i in own], [found[i][1] for i in own], counted, unit)
            used[number] = [material.record.held_out[i].name for i in own]
    calibration = Calibration.fit(scores, config.false_alarm_rate, method=config.calibration)
    for name, names in zip(material.categories, used, strict=True):
        _name_the_lone(calibration.of(name), scores[name].scores, names)
    return calibration


def _name_the_lone(calibration: CategoryCalibration, scores: Sequence[float], names: Sequence[str]) -> None:
    """Say which good image sets the threshold alone, far above all others: it costs defects, and may be no good one."""
    if len(scores) < 2:
        return
    *_, second, first = np.argsort(scores).tolist()
    if scores[first] == calibration.image_threshold > LONE * scores[second]:
        warnings.warn(
            f"{names[first]} alone sets the threshold: its score is {scores[first]:.2f}, that of the next good image "
            f"{scores[second]:.2f}. Look at it: if production never looks like this, take it out and train again; more "
            "defects are found then",
            CdoWarning,
            stacklevel=2,
        )


def _fit(
    model: AnomalyModel,
    number: int,
    images: _Places,
    units: IntArray,
    trained: npt.NDArray[np.bool_],
    defects: tuple[Tensor, Tensor] | None,
    config: Config,
) -> LeftOut:
    which = f" of {model.spec.names[number]}" if len(model.spec.names) > 1 else ""
    settings = FitSettings(
        config.fusion_weights, config.defect_head_weight, config.head_examples, config.baseline_share, config.seed
    )
    with progress_bar() as bar:
        task = bar.add_task(f"fitting the branches{which}", total=len(images), note="")
        return fit_branches(
            model, number, images, units, settings, trained=trained, defects=defects,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip


def _by_category(material: Material) -> list[list[int]]:
    """Places of the images of each category, ascending."""
    return [np.flatnonzero(material.numbers == number).tolist() for number in range(len(material.categories))]


def _largest(values: npt.NDArray[np.float64], of: IntArray) -> npt.NDArray[np.float64]:
    """The largest value of each image's items; `of` numbers the image of each."""
    found = np.full(of.max() + 1, -np.inf)
    np.maximum.at(found, of, values)
    return found


def _at_most(units: IntArray, count: int, seed: int) -> list[int]:
    """Places of at most `count` images, whole units, drawn at random."""
    if len(units) <= count:
        return list(range(len(units)))
    order = np.random.PCG64(seed).random_raw(int(units.max()) + 1)
    by_draw = np.argsort(order[units], kind="stable")[:count]
    return sorted(by_draw.tolist())


def _batches(images: _Places, batch_size: int) -> list[Tensor]:
    starts = range(0, len(images), batch_size)
    return [torch.stack([images[i] for i in range(s, min(s + batch_size, len(images)))]) for s in starts]


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


def fitted_spec(model: AnomalyModel) -> ModelSpec:
    """What a fitted model is made of: branches that got no weight are gone, a defect head may have come."""
    categories = tuple(
        spec.model_copy(
            update={"branches": model.branches(i).names, "defect_head": model.branches(i).defect_head is not None}
        )
        for i, spec in enumerate(model.spec.categories)
    )
    return model.spec.model_copy(update={"categories": categories})


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
    spec = fitted_spec(model)
    # a copy of each tensor: parts that share memory cannot be saved
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if "disagreement" not in spec.branches:  # its weight is 0 everywhere
        state = {name: value for name, value in state.items() if not name.startswith("apprentice.")}
    weights = save(state)
    digest = hashlib.sha256(weights).hexdigest()
    manifest = bundles.Manifest(
        settings=config,
        model=spec,
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
