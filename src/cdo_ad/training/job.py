"""From good images to a bundle: split, train the apprentice, calibrate, write the run folder.

- The loop is bare; Lightning Fabric brings devices, precision and several processes.
- Everything random follows from (seed, epoch, image), so a resumed run equals an uninterrupted one.
- Work in progress lives beside the run folder (`.NAME.training`): an older bundle stays whole until then.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdo_ad import bundle as bundles
from cdo_ad.calibration import Calibration, check_count
from cdo_ad.config import Config
from cdo_ad.data import GoodSplit, read_categories, read_dataset, split_by_part, split_good
from cdo_ad.data.decode import read_image
from cdo_ad.data.split import fingerprint
from cdo_ad.errors import ConfigError, needs_extra
from cdo_ad.inference.detector import calibration_scores
from cdo_ad.progress import progress_bar
from cdo_ad.provenance import revision, versions
from cdo_ad.types import Sample

with needs_extra("train", "training"):
    import torch
    from lightning_fabric import Fabric
    from safetensors.torch import save_model

    from cdo_ad.data.defects import load_defects, read_defects
    from cdo_ad.data.few import CopyStore, altered
    from cdo_ad.data.store import ImageStore
    from cdo_ad.inference.engines.torch import TorchRuntime, load_networks
    from cdo_ad.method.categories import UnifiedNetwork, build
    from cdo_ad.method.fit import scores_without
    from cdo_ad.method.network import CdoNetwork
    from cdo_ad.method.white_noise import image_seed
    from cdo_ad.training.checkpoint import Work
    from cdo_ad.training.loop import fit
    from cdo_ad.training.postfit import calibrate_categories, fit_all_branches

__all__ = ["MEMORY_BUDGET", "Job", "named_defects", "run_job", "train", "write_run"]

MEMORY_BUDGET = 4 * 2**30
"""Bytes of decoded images that are kept in memory; a larger training set is read again each epoch."""
COPIES = 64
"""With few images: see `cdo_ad.data.few`."""


def train(
    data: Path | str,
    out: Path | str,
    config: Config,
    *,
    layout: str = "auto",
    category: str | None = None,
    unified: bool = False,
    device: str = "auto",
    devices: int = 1,
    defects: Path | str | None = None,
    resume: bool = False,
    workers: int = 2,
    memory_budget: int = MEMORY_BUDGET,
) -> bundles.Bundle:
    """Train on the good images of a data set, calibrate on held-out ones, and write the run folder.

    Args:
        data: the data set's folder, see `cdo_ad.data.read_dataset`.
        out: the run folder; an older run there is replaced when the new one is complete.
        config: all settings, from `cdo_ad.recipes`.
        layout: see `read_dataset`.
        category: see `read_dataset`.
        unified: one model for all products of `data`: the same networks, each product's own density (with `few`, one
            density for all). Each product holds out its own share of good images and has its own threshold, which
            its scores are in units of, so that the run's threshold is 1 or little more.
        device: `auto`, `cpu`, `cuda` or `mps` (Fabric's accelerator names).
        devices: number of devices; each trains on its share of every batch.
        defects: folder with a few labelled defects to learn from as well, see `cdo_ad.data.defects.read_defects`.
        resume: go on after the last whole epoch of an interrupted training of the same data and settings.
        workers: processes that read images which do not fit in memory, and threads that decode those which do.
        memory_budget: bytes, see `MEMORY_BUDGET`.

    Returns:
        The bundle that was written.

    Raises:
        DataError, ImageError: a data set or a training image that cannot be used.
        ConfigError: settings that differ from those of the training to be resumed; a category of a unified model.
        CalibrationError: too few good images for the false-alarm rate; raised before any training.
        TrainingError: a loss that is not a number.
        BundleError: `out` holds something else than a run, or there is nothing to resume.
    """
    data, out = Path(data), Path(out)
    bundles.check_writable(out)
    if unified and category is not None:
        raise ConfigError(f"a unified model takes all products of {data}: leave the category {category!r} out")
    products = read_categories(data, layout) if unified else [read_dataset(data, layout, category)]
    products = [[s for s in samples if s.split != "test"] for samples in products]
    samples = [s for product in products for s in product]
    splits = [_few(product) if config.few else _split(product, config) for product in products]
    split = _together(splits)
    labelled = read_defects(defects) if defects is not None else []
    job = Job(
        out, config, [s.path for s in split.fit], [s.path for s in split.calibration], labelled,
        fingerprint([*samples, *labelled], data), device=device, devices=devices, resume=resume, workers=workers,
        memory_budget=memory_budget, products=[] if config.few else [len(part.fit) for part in splits],
    )  # fmt: skip
    return run_job(job, {"data": _describe(data, samples, split, category, labelled, job.fingerprint)})


@dataclass(frozen=True)
class Job:
    """What is to be trained, on which files, with which start."""

    out: Path
    config: Config
    fit: list[Path]
    held_out: list[Path]
    defects: list[Sample]
    fingerprint: str
    start: Path | None = None
    """Weights of a bundle whose networks to go on from, instead of a random apprentice."""
    trained: bool = False
    """The networks of `start` are taken as they are: only branches and thresholds are made anew."""
    device: str = "auto"
    devices: int = 1
    resume: bool = False
    workers: int = 2
    memory_budget: int = MEMORY_BUDGET
    products: Sequence[int] = ()
    """How many of the fit images, in their order, show each product; none, and they are told apart by the networks
    of `start`, or are of one product."""


def run_job(job: Job, provenance: dict[str, Any]) -> bundles.Bundle:
    """Train, calibrate, write; see `train` for what can go wrong.

    Args:
        job: everything that decides the result.
        provenance: of the data; the machine's and the versions' are added.
    """
    config, out = job.config, job.out
    check_count(len(job.held_out) if not config.few else COPIES, config.false_alarm_rate)
    fabric = Fabric(accelerator=job.device, devices=job.devices, precision=config.precision)  # type: ignore[arg-type]
    fabric.launch()
    with fabric.rank_zero_first():
        work = Work(out, config, job.fingerprint, job.resume, fabric.is_global_zero)
    store = _load(job.fit, config, job.memory_budget, job.workers)
    defects = load_defects(job.defects, config.image_size) if job.defects else None
    torch.manual_seed(config.seed)
    network = build(config, max(1, len(job.products))) if job.start is None else load_networks(config, job.start)
    network = network.to(memory_format=torch.channels_last)
    if job.trained:
        network = network.to(fabric.device)
    else:
        fit(fabric, network, store, defects, config, work, job.workers)
    if not fabric.is_global_zero:
        fabric.barrier()
        return bundles.read_bundle(out)
    network.eval()
    if config.density:
        fit_all_branches(network, store, job.products, defects, config, fabric.device)
    calibration = _calibrate(network, fabric.device, job, store)
    provenance |= {
        "seed": config.seed,
        "device": str(fabric.device),
        "devices": fabric.world_size,
        "versions": versions(),
        "revision": revision(),
    }
    with bundles.write_folder(out) as folder:
        write_run(folder, network, config, provenance, calibration)
        if not job.trained:
            work.move_logs(folder)
    work.remove()
    fabric.barrier()
    return bundles.read_bundle(out)


def _few(samples: Sequence[Sample]) -> GoodSplit:
    """All images are for training where there are too few to hold any out."""
    fit = [s for s in samples if s.split == "train"]
    return GoodSplit(fit, [], "none held out: calibrated on altered copies", grouped=False)


def _calibrate(network: CdoNetwork, device: torch.device, job: Job, store: ImageStore | CopyStore) -> Calibration:
    if isinstance(network, UnifiedNetwork):
        return calibrate_categories(network, job.held_out, job.config, device)
    runtime, rate = TorchRuntime(network, device), job.config.false_alarm_rate
    if not isinstance(store, CopyStore):
        return Calibration.fit(*calibration_scores(runtime, job.held_out), rate)
    if store.originals > 1 and network.density is not None:
        scored = scores_without(network, [group.to(device) for group in store.groups()])
    else:
        scored = []
        for k in range(COPIES):
            copy = altered(read_image(job.fit[k % len(job.fit)]), image_seed(job.config.seed, 2**32, k))
            maps, scores = runtime.infer(copy[None])
            scored.append((float(scores[0]), float(maps.max())))
    return Calibration.fit([s for s, _ in scored], [m for _, m in scored], rate, guaranteed=False)


def _split(samples: Sequence[Sample], config: Config) -> GoodSplit:
    wanted = (config.calibration_share, config.calibration_minimum, config.seed)
    if not config.keep_copies_together:
        return split_good(samples, *wanted)
    with progress_bar() as bar:
        task = bar.add_task("looking for near copies", total=sum(s.split == "train" for s in samples), note="")
        return split_by_part(samples, *wanted, lambda: bar.update(task, advance=1))


def write_run(
    folder: Path, network: CdoNetwork, config: Config, provenance: dict[str, Any], calibration: Calibration
) -> None:
    """Write a bundle's files into an existing folder."""
    save_model(network.to("cpu"), str(folder / bundles.MODEL))
    bundles.write_json(
        folder / bundles.CONFIG,
        {"format": bundles.FORMAT, "settings": config.to_json(), "provenance": provenance},
    )
    bundles.write_json(folder / bundles.CALIBRATION, calibration.to_json())


def _together(splits: Sequence[GoodSplit]) -> GoodSplit:
    """The products' splits as one."""
    if len(splits) == 1:
        return splits[0]
    return GoodSplit(
        [s for split in splits for s in split.fit],
        [s for split in splits for s in split.calibration],
        "; ".join(f"{split.fit[0].category}: {split.note}" for split in splits),
        all(split.grouped for split in splits),
    )


def _describe(
    data: Path,
    samples: Sequence[Sample],
    split: GoodSplit,
    category: str | None,
    defects: Sequence[Sample],
    data_fingerprint: str,
) -> dict[str, Any]:
    def named(chosen: Sequence[Sample]) -> list[str]:
        # by the way that leads there: images may be links to another place
        return [Path(os.path.relpath(s.path.absolute(), data.absolute())).as_posix() for s in chosen]

    return {
        "root": str(data.resolve()),
        "category": category or ", ".join(sorted({s.category for s in samples})),
        "fingerprint": data_fingerprint,
        "fit": named(split.fit),
        "calibration": named(split.calibration),
        "split": split.note,
        "defects": named_defects(defects),
    }


def named_defects(defects: Sequence[Sample]) -> list[list[str]]:
    """The full paths of image and mask of each labelled defect, for the provenance."""
    return [[str(s.path.resolve()), str(s.mask_path and s.mask_path.resolve())] for s in defects]


def _load(fit: Sequence[Path], config: Config, memory_budget: int, workers: int) -> ImageStore | CopyStore:
    with progress_bar() as bar:
        task = bar.add_task("reading images", total=len(fit), note="")
        if config.few:
            return CopyStore(
                fit,
                config.image_size,
                COPIES,
                config.seed,
                lambda done, total: bar.update(task, completed=done, total=total),
            )
        return ImageStore(
            fit,
            config.image_size,
            memory_budget=memory_budget,
            workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
