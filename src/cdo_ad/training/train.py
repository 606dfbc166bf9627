"""From good images to a run folder: train the apprentice, fit the branches, calibrate, write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdo_ad.bundle import Bundle, check_writable, locked, read_bundle
from cdo_ad.config import Config
from cdo_ad.data.decode import image_size
from cdo_ad.data.input_size import choose_input_size
from cdo_ad.errors import ConfigError, Interrupted, OutputError, needs_extra
from cdo_ad.progress import progress_bar
from cdo_ad.tiles import tile_for
from cdo_ad.training.material import Material, gather

with needs_extra("train", "training"):
    import torch
    from lightning_fabric import Fabric

    from cdo_ad.data.defects import load_defects, read_defects
    from cdo_ad.data.store import ImageStore
    from cdo_ad.inference.engines.torch import load_model
    from cdo_ad.method.model import AnomalyModel
    from cdo_ad.training.checkpoint import AfterInterruption, Work
    from cdo_ad.training.loop import ApprenticeTraining
    from cdo_ad.training.postfit import fit_and_calibrate, specify, write_model
    from cdo_ad.training.processes import start_processes

__all__ = ["MEMORY_BUDGET", "Machine", "make_run", "train"]

SIDE, LOOKED = 256, 200
"""The input's side for tiles, and images whose size is looked at to choose them."""
MEMORY_BUDGET = 4 * 2**30
"""Bytes of decoded images that are kept in memory; a larger training set is read again in each epoch."""


@dataclass(frozen=True)
class Machine:
    """What a training runs on; none of it changes the result on one device."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps` (Fabric's accelerator names)."""
    devices: int = 1
    """Number of devices; each trains on its share of every batch."""
    workers: int = 2
    """Processes that read images which do not fit in memory, and threads that decode those which do."""
    memory_budget: int = MEMORY_BUDGET


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
    region: Path | str | None = None,
    smallest_defect: float | None = None,
    interrupted: AfterInterruption = "refuse",
    workers: int = 2,
    memory_budget: int = MEMORY_BUDGET,
) -> Bundle:
    """Train on the good images of a data set, calibrate on them, and write the run folder.

    Args:
        data: the data set's folder, see `cdo_ad.read_dataset`.
        out: the run folder; an older run there is replaced when the new one is complete, all other files stay.
        config: all settings, from `cdo_ad.recipes`.
        layout: see `cdo_ad.read_dataset`.
        category: see `cdo_ad.read_dataset`.
        unified: one model for all categories of `data`: the same networks, each category's own branches, weights and
            thresholds.
        device: `auto`, `cpu`, `cuda` or `mps` (Fabric's accelerator names).
        devices: number of devices; each trains on its share of every batch.
        defects: folder with a few labelled defects to learn from too, see `cdo_ad.data.defects.read_defects`.
        region: where to inspect: a mask file, a folder with one for each category, a polygon, or `auto`; see
            `cdo_ad.data.region.read_region`. The anomaly map is 0 elsewhere. None for the whole image.
        smallest_defect: its size in pixels of the images: large images are then judged in tiles in which it spans a
            cell of the features. None: as `config.tile` says.
        interrupted: what to do with an interrupted training of `out`: refuse to touch it, go on with it (the result is
            that of an uninterrupted one), or discard it.
        workers: processes that read images which do not fit in memory, and threads that decode those which do.
        memory_budget: bytes, see `MEMORY_BUDGET`.

    Returns:
        The run that was written.

    Raises:
        DataError, ImageError: a data set or a training image that cannot be used.
        ConfigError: settings that differ from those of the training to be resumed; a category of a unified model.
        CalibrationError: too few good images for the false-alarm rate; raised before any training.
        TrainingError: a loss that is not a number.
        BundleError: `out` holds something else than a run, or an interrupted training. BusyError: another process
            trains into `out`.
        OutputError: `out` cannot be written to.
    """
    data, out = Path(data), Path(out)
    check_writable(out)
    labelled = read_defects(defects) if defects is not None else []
    material = gather(data, config, layout, category, unified, labelled)
    config, material = _in_tiles(config, material, smallest_defect)
    if config.tile and region is not None:
        raise ConfigError("tiles and a region of interest exclude each other: leave one of them out")
    if config.image_height == 0:
        (height, width), why = choose_input_size(material.paths, config.budget)
        config = config.replace(image_height=height, image_width=width)
        material = material.told(why)
    if region is not None:
        material = material.inside(region, config.image_size)
    return make_run(out, config, material, Machine(device, devices, workers, memory_budget), interrupted=interrupted)


def _in_tiles(config: Config, material: Material, smallest_defect: float | None) -> tuple[Config, Material]:
    """Settings for images in tiles, where they are wanted and images are large; the input is square then."""
    if smallest_defect is not None:
        if smallest_defect <= 0:
            raise ConfigError(f"the smallest defect must have a size in pixels, got {smallest_defect:g}")
        sizes = np.array([image_size(path) for path in material.paths[:LOOKED]])
        middle = (int(np.median(sizes[:, 0])), int(np.median(sizes[:, 1])))
        tile = tile_for(smallest_defect, config.image_height or SIDE, middle)
        config = config.replace(tile=tile)
        if not tile:
            material = material.told(f"whole images show defects of {smallest_defect:g} pixels, so no tiles")
    if not config.tile:
        return config, material
    if config.image_height == 0:
        config = config.replace(image_height=SIDE, image_width=SIDE)
    return config, material.told(f"judged in tiles of {config.tile} pixels")


def make_run(
    out: Path,
    config: Config,
    material: Material,
    machine: Machine,
    *,
    start: Bundle | None = None,
    interrupted: AfterInterruption = "refuse",
    keep_apprentice: bool = False,
) -> Bundle:
    """Train, fit, calibrate, write; see `train` for what can go wrong.

    Args:
        out: the run folder.
        config: the settings.
        material: images and defects.
        machine: what to run on.
        start: a run whose networks to go on from, instead of a random apprentice.
        interrupted: see `train`.
        keep_apprentice: the networks of `start` are taken as they are; only branches and thresholds are made anew.
    """
    fabric = start_processes(machine.device, machine.devices, config.precision)
    with _owned(out, fabric.is_global_zero):
        with fabric.rank_zero_first():
            work = Work(out, config, material.record.fingerprint, interrupted, fabric.is_global_zero)
        try:
            _make(fabric, out, config, material, machine, work, start, keep_apprentice)
        except (KeyboardInterrupt, Interrupted):
            raise Interrupted(_kept(work) or "no epoch was done, so nothing is kept") from None
        except OutputError as error:
            raise OutputError(f"{error}; {kept}" if (kept := _kept(work)) else str(error)) from error
        except BaseException:
            _kept(work)
            raise
        fabric.barrier()
    return read_bundle(out)


def _kept(work: Work) -> str:
    """After an error: keep the work only where an epoch is done; what the user can do with it."""
    if work.checkpoint.is_file():
        return "what is done of the training is kept: go on with it with  --resume"
    work.remove()
    return ""


@contextmanager
def _owned(out: Path, owner: bool) -> Iterator[None]:
    """Hold the run folder's lock in one process of several."""
    if not owner:
        yield
        return
    with locked(out):
        yield


def _make(
    fabric: Fabric,
    out: Path,
    config: Config,
    material: Material,
    machine: Machine,
    work: Work,
    start: Bundle | None,
    keep_apprentice: bool,
) -> None:
    store = _load(material, config, machine)
    defects = load_defects(material.defects, config.image_size, config.depth) if material.defects else None
    torch.manual_seed(config.seed)
    model = AnomalyModel(specify(config, material, store), config.weights if start is None else "none")
    if start is not None:
        take_networks(model, load_model(start))
    model = model.to(memory_format=torch.channels_last).to(fabric.device)
    taught = material.taught(config)
    if model.apprentice is not None and not keep_apprentice:
        ApprenticeTraining(
            fabric, model, store.some(store.items(taught)), config, work, defects=defects, workers=machine.workers
        ).run()
    if not fabric.is_global_zero:
        return
    calibration = fit_and_calibrate(model, store, material, defects, config, taught)
    write_model(out, model, config, material.record, calibration, fabric, None if keep_apprentice else work)
    work.remove()


def take_networks(model: AnomalyModel, other: AnomalyModel) -> None:
    """Give a model the expert and the apprentice of another."""
    model.expert.load_state_dict(other.expert.state_dict())
    if model.apprentice is not None and other.apprentice is not None:
        model.apprentice.load_state_dict(other.apprentice.state_dict())


def _load(material: Material, config: Config, machine: Machine) -> ImageStore:
    paths = material.paths
    with progress_bar() as bar:
        task = bar.add_task("reading images", total=len(paths), note="")
        return ImageStore(
            paths,
            config.image_size,
            memory_budget=machine.memory_budget,
            workers=machine.workers,
            tile=config.tile,
            depth=config.depth,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
