"""The training of the apprentice: epochs, steps, the loss of a step.

Everything random follows from (seed, epoch, image), so a resumed training equals an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from cdo_ad.config import Config
from cdo_ad.errors import ConfigError, TrainingError, needs_extra
from cdo_ad.progress import progress_bar
from cdo_ad.training.checkpoint import COLUMNS, Work

with needs_extra("train", "training"):
    import torch
    from lightning_fabric import Fabric
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset

    from cdo_ad.data.defects import Defects
    from cdo_ad.data.store import ImageStore
    from cdo_ad.method.anomalies import add_anomalies
    from cdo_ad.method.discrepancy import discrepancies
    from cdo_ad.method.loss import collaborative_loss
    from cdo_ad.method.model import AnomalyModel
    from cdo_ad.method.white_noise import image_seed
    from cdo_ad.training.processes import globalize, sum_over_processes

__all__ = ["ApprenticeTraining"]


class _Indexed(Dataset[tuple[int, Tensor]]):
    """A store whose items come with their index, from which an image's seed follows."""

    def __init__(self, store: ImageStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, self.store[index][:3]  # an apprentice looks at colours alone


class ApprenticeTraining:
    """Trains the apprentice of a model on good images, and on labelled defects where there are any."""

    def __init__(
        self,
        fabric: Fabric,
        model: AnomalyModel,
        store: ImageStore,
        config: Config,
        work: Work,
        *,
        defects: Defects | None = None,
        workers: int = 0,
    ) -> None:
        """Prepare it.

        Args:
            fabric: launched; the model is moved to its device.
            model: whose apprentice is trained.
            store: the good images.
            config: the settings.
            work: takes checkpoint and log after each epoch; an interrupted training goes on with what it holds.
            defects: labelled defects that join each step.
            workers: processes that read images which are not kept in memory.
        """
        self.fabric, self.model, self.store, self.config, self.work = fabric, model, store, config, work
        self.defects, self.workers = defects, workers
        self.optimizer = make_optimizer(self._own(), config)
        self.first = 0
        if work.state is not None:
            self._own().load_state_dict(work.state["apprentice"])
            self.optimizer.load_state_dict(work.state["optimizer"])
            self.first = work.state["epoch"]
        model.to(fabric.device)
        if fabric.world_size > 1:
            globalize(self._own())
        self.apprentice: nn.Module
        self.apprentice, self.prepared = fabric.setup(self._own(), self.optimizer)

    def _own(self) -> nn.Module:
        """The model's apprentice."""
        if self.model.apprentice is None:
            raise ConfigError("this model has no apprentice: add disagreement to its branches")
        return self.model.apprentice

    def run(self) -> None:
        """Train all epochs that are left; raises TrainingError for a loss that is not a number."""
        config, fabric = self.config, self.fabric
        steps = -(-len(self.store) // config.batch_size)
        with progress_bar() as bar, self.work.board(fabric.is_global_zero) as board:
            task = bar.add_task("training", total=config.epochs * steps, completed=self.first * steps, note="")
            for epoch in range(self.first, config.epochs):
                start, losses = time.perf_counter(), []
                for loss, done in self.epoch(epoch):
                    losses.append(loss)
                    rate = done / (time.perf_counter() - start)
                    note = f"epoch {epoch + 1}/{config.epochs}  loss {loss:.3f}  {rate:.1f} images/s"
                    bar.update(task, advance=1, note=note)
                seconds = time.perf_counter() - start
                row = {
                    "epoch": epoch + 1,
                    "loss": sum(losses) / len(losses),
                    "lr": self.optimizer.param_groups[0]["lr"],
                    "images_per_second": len(self.store) / seconds,
                    "seconds": seconds,
                }
                self.work.rows.append(row)
                if board is not None:
                    for name in COLUMNS[1:]:
                        board.add_scalar(name, row[name], epoch + 1)
                if fabric.is_global_zero:
                    self.work.save(self._own().state_dict(), self.optimizer.state_dict(), epoch + 1)
                fabric.barrier()

    def epoch(self, epoch: int) -> Iterator[tuple[float, int]]:
        """Train one epoch; yields each step's loss and the number of images so far."""
        config, fabric = self.config, self.fabric
        batches = split_batches(
            len(self.store), config.batch_size, config.seed, epoch, fabric.global_rank, fabric.world_size
        )
        loader = DataLoader(
            _Indexed(self.store),
            batch_sampler=batches,
            num_workers=0 if self.store.cached else self.workers,
            pin_memory=fabric.device.type == "cuda",
            collate_fn=self._collate,
        )
        self.model.train()
        done = 0
        for step, (indices, images) in enumerate(loader):
            for group in self.prepared.param_groups:
                group["lr"] = config.lr * lr_factor(config, epoch, step, len(batches))
            planes, masks = self._anomalous(images.to(fabric.device, non_blocking=True), indices, epoch, step)
            loss = self.loss(planes, masks)
            self.prepared.zero_grad()
            fabric.backward(loss * fabric.world_size)  # the processes' gradients are averaged, and the parts add up
            self.prepared.step()
            value = float(sum_over_processes(loss.detach()))
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss is {value} in epoch {epoch + 1}, step {step + 1}: lower the learning rate "
                    f"(now {config.lr:g}) with  --set lr={config.lr / 4:g}"
                )
            done += int(sum_over_processes(torch.tensor(float(len(images)), device=fabric.device)))
            yield value, done

    def _collate(self, items: list[tuple[int, Tensor]]) -> tuple[list[int], Tensor]:
        """Indices and images of a step; this process may have none."""
        images = [image for _, image in items]
        return [index for index, _ in items], torch.stack(images) if images else torch.empty(0, 3, *self.store.size)

    def loss(self, planes: Tensor, masks: Tensor) -> Tensor:
        """The collaborative loss of one step; (B, 3, H, W) float images and (B, H, W) bool masks of anomalies."""
        with self.fabric.autocast():
            normalized = self.model.normalize(planes).contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                expert = self.model.expert(normalized)
        maps = discrepancies(expert, self.apprentice(normalized))
        return collaborative_loss(maps, masks, self.config.gamma, self.config.oom, sum_over_processes)

    def _anomalous(self, images: Tensor, indices: list[int], epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """A step's images with synthetic anomalies, labelled defects after them, and where all of these are."""
        config = self.config
        if config.mom:
            seeds = [image_seed(config.seed, epoch, index) for index in indices]
            images, masks = add_anomalies(images, config.anomalies, seeds, config.background)
        else:
            masks = torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool, device=images.device)
        if self.defects is None:
            return images, masks
        turn = step * self.fabric.world_size + self.fabric.global_rank
        shown, drawn = draw_defects(self.defects, len(images), config, epoch, turn)
        return torch.cat([images, shown.to(images)]), torch.cat([masks, drawn.to(masks)])


def split_batches(count: int, batch_size: int, seed: int, epoch: int, rank: int, world: int) -> list[list[int]]:
    """The rank's share of each batch of one epoch; a share may be empty where a last batch is small."""
    generator = torch.Generator().manual_seed(image_seed(seed, epoch, 2**32))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    batches = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    return [batch[rank::world] for batch in batches]


def draw_defects(defects: Defects, good: int, config: Config, epoch: int, turn: int) -> tuple[Tensor, Tensor]:
    """Labelled defects to go with a step's good images, each as often as any other, mirrored at random."""
    count = max(1, round(good * config.defect_share / (1 - config.defect_share)))
    generator = torch.Generator().manual_seed(image_seed(config.seed, epoch, 2**33 + turn))
    chosen = torch.randint(0, len(defects), (count,), generator=generator)
    images, masks = defects.images[chosen, :3], defects.masks[chosen]
    for axis in (-1, -2):
        if torch.randint(0, 2, (), generator=generator):
            images, masks = images.flip(axis), masks.flip(axis)
    return images, masks


def make_optimizer(apprentice: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimizer that the settings name."""
    if config.optimizer == "adam":
        return torch.optim.Adam(
            apprentice.parameters(), lr=config.lr, betas=(0.5, 0.999), weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(apprentice.parameters(), lr=config.lr, weight_decay=config.weight_decay)


def lr_factor(config: Config, epoch: int, step: int, steps: int) -> float:
    """What the learning rate is multiplied by; a function of the position alone, so that resuming needs no state."""
    if config.schedule == "exponential":
        return config.decay**epoch
    if config.schedule == "step":
        return config.decay if epoch >= 0.8 * config.epochs else 1.0
    if config.schedule == "one-cycle":
        progress, warm_up = (epoch * steps + step + 1) / (config.epochs * steps), 0.1
        if progress < warm_up:
            return progress / warm_up
        return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))
    return 1.0
