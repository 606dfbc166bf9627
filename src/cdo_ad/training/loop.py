"""The training loop: epochs, steps, the loss of a step. Everything random follows from (seed, epoch, image)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cdo_ad.config import Config
from cdo_ad.errors import TrainingError, needs_extra
from cdo_ad.progress import progress_bar
from cdo_ad.training.checkpoint import COLUMNS, Work

with needs_extra("train", "training"):
    import torch
    from lightning_fabric import Fabric
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset

    from cdo_ad.data.defects import Defects
    from cdo_ad.data.few import CopyStore
    from cdo_ad.data.store import ImageStore
    from cdo_ad.method.anomalies import add_anomalies
    from cdo_ad.method.discrepancy import discrepancies
    from cdo_ad.method.loss import collaborative_loss
    from cdo_ad.method.network import CdoNetwork
    from cdo_ad.method.white_noise import image_seed

__all__ = ["fit"]


class _Indexed(Dataset[tuple[int, Tensor]]):
    """A store whose items come with their index, from which an image's seed follows."""

    def __init__(self, store: ImageStore | CopyStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, self.store[index]


def _batches(count: int, batch_size: int, seed: int, epoch: int, rank: int, world: int) -> list[list[int]]:
    """The rank's share of each batch of one epoch; a last single image is left out where there are others."""
    generator = torch.Generator().manual_seed(image_seed(seed, epoch, 2**32))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    batches = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    if len(batches) > 1 and len(batches[-1]) < max(2, world):  # BatchNorm wants two, and every rank its share
        batches.pop()
    return [batch[rank::world] for batch in batches]


def fit(
    fabric: Fabric,
    network: CdoNetwork,
    store: ImageStore | CopyStore,
    defects: Defects | None,
    config: Config,
    work: Work,
    workers: int,
) -> None:
    """Train the apprentice; a resumed training goes on after the last whole epoch.

    Args:
        fabric: launched; moves the network to its device.
        network: whose apprentice is trained.
        store: the fit images.
        defects: labelled defects that join each step, or None.
        config: the settings.
        work: takes checkpoint and logs after each epoch.
        workers: processes that read images which are not kept in memory.

    Raises:
        TrainingError: a loss that is not a number.
    """
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
    """Train one epoch; yields each step's loss and the number of images so far."""
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
    """Labelled defects to go with a step's good images, each as often as any other, mirrored at random."""
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
    """The loss of one step; `defects` join the images, and their masks the synthetic pixels."""
    if config.mom:
        images, mask = add_anomalies(images, config.kinds(), seeds, config.background)
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
