"""From good pictures to a bundle: split, train the apprentice, calibrate, write the run folder.

- The loop is bare; Lightning Fabric brings devices, precision and several processes.
- Everything random follows from (seed, epoch, picture), so a resumed run equals an uninterrupted one.
- Work in progress lives beside the run folder (`.NAME.training`): an older bundle stays whole until then.
"""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdo_ad import bundle as bundles
from cdo_ad.calibrate import Calibration, check_count
from cdo_ad.config import Config
from cdo_ad.data import GoodSplit, read_dataset, split_good
from cdo_ad.data.duplicates import hash_pictures
from cdo_ad.data.images import read_image
from cdo_ad.data.split import fingerprint
from cdo_ad.detector import calibration_scores
from cdo_ad.errors import BundleError, ConfigError, TrainingError, needs_extra
from cdo_ad.progress import progress_bar
from cdo_ad.provenance import revision, versions
from cdo_ad.types import Sample

with needs_extra("train", "training"):
    import torch
    from lightning_fabric import Fabric
    from safetensors.torch import save_model
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset

    from cdo_ad.data.dataset import ImageStore
    from cdo_ad.data.defects import Defects, load_defects, read_defects
    from cdo_ad.data.few import CopyStore, altered
    from cdo_ad.method.anomalies import mixed
    from cdo_ad.method.discrepancy import discrepancies
    from cdo_ad.method.fitting import fit_views
    from cdo_ad.method.loss import collaborative_loss
    from cdo_ad.method.network import CdoNetwork
    from cdo_ad.method.synthesis import image_seed
    from cdo_ad.runtime import TorchRuntime, load_network

__all__ = ["MEMORY_BUDGET", "Job", "run_job", "train", "write_run"]

MEMORY_BUDGET = 4 * 2**30
"""Bytes of decoded pictures that are kept in memory; a larger training set is read again each epoch."""
COPIES_TO_TRAIN = 64
COPIES_TO_CALIBRATE = 100
"""With few pictures: see `cdo_ad.data.few`."""
COLUMNS = ("epoch", "loss", "lr", "images_per_second", "seconds")


def train(
    data: Path | str,
    out: Path | str,
    config: Config,
    *,
    layout: str = "auto",
    category: str | None = None,
    device: str = "auto",
    devices: int = 1,
    defects: Path | str | None = None,
    resume: bool = False,
    workers: int = 2,
    memory_budget: int = MEMORY_BUDGET,
) -> bundles.Bundle:
    """Train on the good pictures of a data set, calibrate on held-out ones, and write the run folder.

    Args:
        data: the data set's folder, see `cdo_ad.data.read_dataset`.
        out: the run folder; an older run there is replaced when the new one is complete.
        config: all settings, from `cdo_ad.recipes`.
        layout: see `read_dataset`.
        category: see `read_dataset`.
        device: `auto`, `cpu`, `cuda` or `mps` (Fabric's accelerator names).
        devices: number of devices; each trains on its share of every batch.
        defects: folder with a few labelled defects to learn from as well, see `cdo_ad.data.defects.read_defects`.
        resume: go on after the last whole epoch of an interrupted training of the same data and settings.
        workers: processes that read pictures which do not fit in memory, and threads that decode those which do.
        memory_budget: bytes, see `MEMORY_BUDGET`.

    Returns:
        The bundle that was written.

    Raises:
        DataError, ImageError: a data set or a training picture that cannot be used.
        ConfigError: settings that differ from those of the training to be resumed.
        CalibrationError: too few good pictures for the false-alarm rate; raised before any training.
        TrainingError: a loss that is not a number.
        BundleError: `out` holds something else than a run, or there is nothing to resume.
    """
    data, out = Path(data), Path(out)
    bundles.check_writable(out)
    samples = [s for s in read_dataset(data, layout, category) if s.split != "test"]
    split = _few(samples) if config.few else _split(samples, config)
    labelled = read_defects(defects) if defects is not None else []
    job = Job(
        out, config, [s.path for s in split.fit], [s.path for s in split.calibration], labelled,
        fingerprint([*samples, *labelled], data), device=device, devices=devices, resume=resume, workers=workers,
        memory_budget=memory_budget,
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
    """Weights of a bundle to go on from, instead of a random apprentice."""
    device: str = "auto"
    devices: int = 1
    resume: bool = False
    workers: int = 2
    memory_budget: int = MEMORY_BUDGET


def run_job(job: Job, provenance: dict[str, Any]) -> bundles.Bundle:
    """Train, calibrate, write; see `train` for what can go wrong.

    Args:
        job: everything that decides the result.
        provenance: of the data; the machine's and the versions' are added.
    """
    config, out = job.config, job.out
    check_count(len(job.held_out) if not config.few else COPIES_TO_CALIBRATE, config.false_alarm_rate)
    fabric = Fabric(accelerator=job.device, devices=job.devices, precision=config.precision)  # type: ignore[arg-type]
    fabric.launch()
    with fabric.rank_zero_first():
        work = _Work(out, config, job.fingerprint, job.resume, fabric.is_global_zero)
    store = _load(job.fit, config, job.memory_budget, job.workers)
    defects = load_defects(job.defects, config.image_size) if job.defects else None
    torch.manual_seed(config.seed)
    network = CdoNetwork.from_config(config) if job.start is None else load_network(config, job.start)
    network = network.to(memory_format=torch.channels_last)
    _fit(fabric, network, store, defects, config, work, job.workers)
    if not fabric.is_global_zero:
        fabric.barrier()
        return bundles.read_bundle(out)
    network.eval()
    if config.density:
        _fit_views(network, store, config, fabric.device)
    calibration = _calibrate(network, fabric.device, job)
    provenance |= {
        "seed": config.seed,
        "device": str(fabric.device),
        "devices": fabric.world_size,
        "versions": versions(),
        "revision": revision(),
    }
    with bundles.write_folder(out) as folder:
        write_run(folder, network, config, provenance, calibration)
        work.move_logs(folder)
    work.remove()
    fabric.barrier()
    return bundles.read_bundle(out)


def _few(samples: Sequence[Sample]) -> GoodSplit:
    """All pictures are for training where there are too few to hold any out."""
    fit = [s for s in samples if s.split == "train"]
    return GoodSplit(fit, [], "none held out: calibrated on altered copies", grouped=False)


def _calibrate(network: CdoNetwork, device: torch.device, job: Job) -> Calibration:
    runtime, rate = TorchRuntime(network, device), job.config.false_alarm_rate
    if not job.config.few:
        return Calibration.fit(*calibration_scores(runtime, job.held_out), rate)
    scores, maxima = [], []
    for k in range(COPIES_TO_CALIBRATE):
        copy = altered(read_image(job.fit[k % len(job.fit)]), image_seed(job.config.seed, 2**32, k))
        maps, score = runtime.infer(copy[None])
        scores.append(float(score[0]))
        maxima.append(float(maps.max()))
    return Calibration.fit(scores, maxima, rate, promised=False)


def _split(samples: Sequence[Sample], config: Config) -> GoodSplit:
    hashes = None
    if config.keep_copies_together and all(s.split == "train" for s in samples):
        with progress_bar() as bar:
            task = bar.add_task("looking for near copies", total=len(samples), note="")
            hashes = hash_pictures([s.path for s in samples], lambda: bar.update(task, advance=1))
    return split_good(samples, config.calibration_share, config.calibration_minimum, config.seed, hashes)


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


def _describe(
    data: Path,
    samples: Sequence[Sample],
    split: GoodSplit,
    category: str | None,
    defects: Sequence[Sample],
    data_fingerprint: str,
) -> dict[str, Any]:
    root = data.resolve()
    return {
        "root": str(root),
        "category": category or samples[0].category,
        "fingerprint": data_fingerprint,
        "fit": [s.path.resolve().relative_to(root).as_posix() for s in split.fit],
        "calibration": [s.path.resolve().relative_to(root).as_posix() for s in split.calibration],
        "split": split.note,
        "defects": [[str(s.path.resolve()), str(s.mask_path and s.mask_path.resolve())] for s in defects],
    }


def _load(fit: Sequence[Path], config: Config, memory_budget: int, workers: int) -> ImageStore | CopyStore:
    with progress_bar() as bar:
        task = bar.add_task("reading pictures", total=len(fit), note="")
        if config.few:
            return CopyStore(
                fit,
                config.image_size,
                COPIES_TO_TRAIN,
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


class _Work:
    """The folder of a training in progress: checkpoint and logs."""

    def __init__(self, out: Path, config: Config, data_fingerprint: str, resume: bool, owner: bool) -> None:
        self.folder = out.resolve().parent / f".{out.resolve().name}.training"
        self.checkpoint = self.folder / "checkpoint.pt"
        self.identity: dict[str, Any] = {"settings": config.to_json(), "fingerprint": data_fingerprint}
        self.rows: list[dict[str, float]] = []
        self.state: dict[str, Any] | None = None
        if resume:
            self.state = self._read(out)
            self.rows = self.state["rows"]
        elif owner:  # one process of several makes the folder
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _read(self, out: Path) -> dict[str, Any]:
        if not self.checkpoint.is_file():
            raise BundleError(f"nothing to resume for {out}: no interrupted training is there; leave --resume out")
        state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state["identity"]["fingerprint"] != self.identity["fingerprint"]:
            raise ConfigError("--resume: the good pictures are not those of the interrupted training: start anew")
        before, now = state["identity"]["settings"], self.identity["settings"]
        for key in now:
            if before.get(key) != now[key]:
                raise ConfigError(
                    f"--resume: {key} was {before.get(key)!r} and is {now[key]!r}: give the same settings or start anew"
                )
        return state

    def save(self, network: CdoNetwork, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        state = {
            "identity": self.identity,
            "epoch": epoch,
            "apprentice": network.apprentice.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rows": self.rows,
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.checkpoint)

    def move_logs(self, folder: Path) -> None:
        with (folder / bundles.LOG).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
        if (self.folder / "tensorboard").is_dir():
            shutil.copytree(self.folder / "tensorboard", folder / "tensorboard")

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class _Indexed(Dataset[tuple[int, Tensor]]):
    """A store whose items come with their index, from which a picture's seed follows."""

    def __init__(self, store: ImageStore | CopyStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, self.store[index]


def _fit_views(network: CdoNetwork, store: ImageStore | CopyStore, config: Config, device: torch.device) -> None:
    with progress_bar() as bar:
        task = bar.add_task("fitting the density", total=len(store), note="")
        fit_views(
            network,
            _unperturbed(store, config, device),
            len(store),
            config.shares(),
            config.seed,
            lambda done, total: bar.update(task, completed=done, total=total),
        )


def _unperturbed(store: ImageStore | CopyStore, config: Config, device: torch.device) -> Iterator[Tensor]:
    """Every picture once, in random order."""
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(config.seed)).tolist()
    for start in range(0, len(order), config.batch_size):
        yield torch.stack([store[i] for i in order[start : start + config.batch_size]]).to(device)


def _batches(count: int, batch_size: int, seed: int, epoch: int, rank: int, world: int) -> list[list[int]]:
    """The rank's share of each batch of one epoch; a last single picture is left out where there are others."""
    generator = torch.Generator().manual_seed(image_seed(seed, epoch, 2**32))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    batches = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    if len(batches) > 1 and len(batches[-1]) < max(2, world):  # BatchNorm wants two, and every rank its share
        batches.pop()
    return [batch[rank::world] for batch in batches]


def _fit(
    fabric: Fabric,
    network: CdoNetwork,
    store: ImageStore | CopyStore,
    defects: Defects | None,
    config: Config,
    work: _Work,
    workers: int,
) -> None:
    optimizer = _optimizer(network.apprentice, config)
    first = 0
    if work.state is not None:
        network.apprentice.load_state_dict(work.state["apprentice"])
        optimizer.load_state_dict(work.state["optimizer"])
        first = work.state["epoch"]
    network.to(fabric.device)
    apprentice, prepared = fabric.setup(network.apprentice, optimizer)
    board = _tensorboard(work.folder) if fabric.is_global_zero else None
    with progress_bar() as bar:
        steps = -(-len(store) // config.batch_size)
        task = bar.add_task("training", total=config.epochs * steps, completed=first * steps, note="")
        for epoch in range(first, config.epochs):
            start = time.perf_counter()
            losses = []
            for loss, done in _epoch(fabric, network, apprentice, prepared, store, defects, config, epoch, workers):
                losses.append(loss)
                rate = done / (time.perf_counter() - start)
                note = f"epoch {epoch + 1}/{config.epochs}  loss {loss:.3f}  {rate:.1f} images/s"
                bar.update(task, advance=1, note=note)
            seconds = time.perf_counter() - start
            row = {
                "epoch": epoch + 1,
                "loss": sum(losses) / len(losses),
                "lr": optimizer.param_groups[0]["lr"],
                "images_per_second": len(store) / seconds,
                "seconds": seconds,
            }
            work.rows.append(row)
            if board is not None:
                for name in COLUMNS[1:]:
                    board.add_scalar(name, row[name], epoch + 1)
            if fabric.is_global_zero:
                work.save(network, optimizer, epoch + 1)
            fabric.barrier()
    if board is not None:
        board.close()


def _epoch(
    fabric: Fabric,
    network: CdoNetwork,
    apprentice: nn.Module,
    optimizer: Any,
    store: ImageStore | CopyStore,
    defects: Defects | None,
    config: Config,
    epoch: int,
    workers: int,
) -> Iterator[tuple[float, int]]:
    """Train one epoch; yields each step's loss and the number of pictures so far."""
    batches = _batches(len(store), config.batch_size, config.seed, epoch, fabric.global_rank, fabric.world_size)
    loader = DataLoader(
        _Indexed(store),
        batch_sampler=batches,
        num_workers=0 if store.cached else workers,
        pin_memory=fabric.device.type == "cuda",
    )
    network.train()
    done = 0
    for step, (indices, images) in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _lr_factor(config, epoch, step, len(batches))
        images = images.to(fabric.device, non_blocking=True)
        seeds = [image_seed(config.seed, epoch, int(i)) for i in indices]
        shown = None
        if defects is not None:
            shown = _draw_defects(defects, len(images), config, epoch, step, fabric)
        loss = _loss(fabric, network, apprentice, images, seeds, config, shown)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        value = loss.item()
        if value != value or abs(value) == float("inf"):
            raise TrainingError(
                f"the loss is {value} in epoch {epoch + 1}, step {step + 1}: lower the learning rate "
                f"(now {config.lr:g}) with  --set lr={config.lr / 4:g}"
            )
        done += len(images) * fabric.world_size
        yield value, done


def _draw_defects(
    defects: Defects, good: int, config: Config, epoch: int, step: int, fabric: Fabric
) -> tuple[Tensor, Tensor]:
    """Labelled defects to go with a step's good pictures, each as often as any other, mirrored at random."""
    count = max(1, round(good * config.defect_share / (1 - config.defect_share)))
    seed = image_seed(config.seed, epoch, 2**33 + step * fabric.world_size + fabric.global_rank)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, len(defects), (count,), generator=generator)
    images, masks = defects.images[chosen], defects.masks[chosen]
    for axis in (-1, -2):
        if torch.randint(0, 2, (), generator=generator):
            images, masks = images.flip(axis), masks.flip(axis)
    return images.to(fabric.device), masks.to(fabric.device)


def _loss(
    fabric: Fabric,
    network: CdoNetwork,
    apprentice: nn.Module,
    images: Tensor,
    seeds: list[int],
    config: Config,
    defects: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The loss of one step; `defects` join the pictures, and their masks the synthetic pixels."""
    if config.mom:
        images, mask = mixed(images, config.kinds(), seeds, config.background)
    else:
        mask = torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool, device=images.device)
    if defects is not None:
        images, mask = torch.cat([images, defects[0]]), torch.cat([mask, defects[1]])
    with fabric.autocast():
        normalised = network.normalise(images).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            expert = network.expert(normalised)
    maps = discrepancies(expert, apprentice(normalised))
    return collaborative_loss(maps, mask, config.gamma, config.oom)


def _optimizer(apprentice: nn.Module, config: Config) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(
            apprentice.parameters(), lr=config.lr, betas=(0.5, 0.999), weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(apprentice.parameters(), lr=config.lr, weight_decay=config.weight_decay)


def _lr_factor(config: Config, epoch: int, step: int, steps: int) -> float:
    """What the learning rate is multiplied by; a function of the position alone, so that resuming needs no state."""
    if config.schedule == "exponential":
        return config.decay**epoch
    if config.schedule == "step":
        return config.decay if epoch >= 0.8 * config.epochs else 1.0
    if config.schedule == "one-cycle":
        progress = (epoch * steps + step + 1) / (config.epochs * steps)
        warm_up = 0.1
        if progress < warm_up:
            return progress / warm_up
        phase = torch.tensor((progress - warm_up) / (1 - warm_up) * torch.pi)
        return float(0.5 * (1 + torch.cos(phase)))
    return 1.0


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # slow to import, so only where a training starts

    return SummaryWriter(str(folder / "tensorboard"))
