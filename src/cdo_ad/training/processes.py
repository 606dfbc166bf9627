"""Several processes that train one model as one process would: global batch statistics and sums.

torch's SyncBatchNorm needs a GPU and parts of equal size. `GlobalBatchNorm` works on any device and with parts of any
size, even empty ones, so N processes with a batch of B / N follow one process with a batch of B.
"""

from __future__ import annotations

import os
from typing import cast

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from cdo_ad.errors import ConfigError

__all__ = ["GlobalBatchNorm", "globalize", "start_processes", "sum_over_processes"]


def start_processes(device: str, devices: int, precision: str) -> Fabric:
    """Start or join the processes of a training.

    Under torchrun or Slurm the launcher's numbers count: each process joins, whatever `devices` says.

    Args:
        device: Fabric's accelerator.
        devices: number of devices of this machine, for a training that no launcher started.
        precision: Fabric's precision.

    Raises:
        ConfigError: the launcher started several processes and they did not find each other.
    """
    world, here, nodes = _launched()
    if world > 1:
        devices = here
    fabric = Fabric(accelerator=device, devices=devices, num_nodes=nodes, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    if world > 1 and fabric.world_size != world:
        raise ConfigError(
            f"{world} processes were started, but this one sees {fabric.world_size}: each would train alone; start "
            "them with torchrun or srun, see docs/scaling.md"
        )
    return fabric


def _launched() -> tuple[int, int, int]:
    """Processes in all, on this machine, and machines, as a launcher says; (1, 1, 1) without one."""
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun
        world, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        return world, here, max(1, world // here)
    if "SLURM_NTASKS" in os.environ and "SLURM_NNODES" in os.environ and "SLURM_PROCID" in os.environ:  # srun
        world, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NNODES"])
        return world, max(1, world // nodes), nodes
    return 1, 1, 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Add up a tensor over all processes, without gradient; itself in a training of one process."""
    if not _several():
        return values
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed


class _AllSum(torch.autograd.Function):
    """Add up over processes; the gradient of a sum that all processes use is the sum of their gradients."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return sum_over_processes(values)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return sum_over_processes(gradients[0])


class GlobalBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the parts of a batch that several processes hold; as `BatchNorm2d` in eval mode and alone."""

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape; B may be 0."""
        if not self.training or not _several():
            return super().forward(values)
        count = values.new_tensor([values.numel() / values.shape[1]])
        sums = cast(Tensor, _AllSum.apply(torch.cat([values.sum(dim=(0, 2, 3)), count])))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = values - mean.view(1, -1, 1, 1)
        squares = cast(Tensor, _AllSum.apply(centred.square().sum(dim=(0, 2, 3))))
        variance = squares / total
        self._track(mean.detach(), variance.detach() * total / (total - 1))
        scaled = centred * torch.rsqrt(variance + self.eps).view(1, -1, 1, 1)
        if self.weight is None:
            return scaled
        return scaled * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Activated(GlobalBatchNorm):
    """In the place of timm's BatchNorm with an activation behind it."""

    drop: nn.Module
    act: nn.Module

    def forward(self, values: Tensor) -> Tensor:
        """See `GlobalBatchNorm.forward`."""
        return cast(Tensor, self.act(self.drop(super().forward(values))))


def globalize(module: nn.Module) -> None:
    """Replace all BatchNorm layers inside a module by global ones with the same parameters, buffers and names."""
    for name, child in list(module.named_children()):
        if not isinstance(child, nn.BatchNorm2d):
            globalize(child)
        elif not isinstance(child, GlobalBatchNorm):
            setattr(module, name, _global(child))


def _global(layer: nn.BatchNorm2d) -> GlobalBatchNorm:
    kind = _Activated if hasattr(layer, "act") else GlobalBatchNorm
    made = kind(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    made.weight, made.bias = layer.weight, layer.bias  # the same objects: an optimizer may hold them
    made.running_mean, made.running_var = layer.running_mean, layer.running_var
    made.num_batches_tracked = layer.num_batches_tracked
    if isinstance(made, _Activated):
        made.drop, made.act = cast(nn.Module, layer.drop), cast(nn.Module, layer.act)
    return made.train(layer.training)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
