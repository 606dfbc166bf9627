"""An epoch of this package's training against the plain loop, written as the paper's code is: the same loss, less time.

    python benchmarks/epoch.py [--images 96] [--rounds 3] [--batch 16]

Both loops start from the same weights and see the same perturbed batches. The plain loop: contiguous NCHW tensors,
timm's whole feature network, features up-sampled and normalised, everything else as in METHOD. Time is measured in
turns in one process; memory in a process of its own for each loop, as the largest resident size.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import timm
import torch
from torch import Tensor

from cdo_ad.config import Config
from cdo_ad.method.discrepancy import discrepancies, discrepancies_plain
from cdo_ad.method.loss import collaborative_loss
from cdo_ad.method.model import AnomalyModel
from cdo_ad.method.white_noise import image_seed, white_noise
from cdo_ad.spec import ModelSpec

BACKBONE = "tf_efficientnet_lite0"


class Loop:
    """One way to train: `plain` or `ours`."""

    def __init__(self, form: str, backbone: str = BACKBONE, weights: str = "auto") -> None:
        torch.manual_seed(0)
        self.plain = form == "plain"
        self.network = AnomalyModel(ModelSpec.from_config(Config(backbone=backbone)), weights)
        if self.plain:
            for net in (self.network.apprentice, self.network.expert):
                whole = timm.create_model(backbone, pretrained=False, features_only=True, out_indices=(1, 2, 3))
                whole.load_state_dict({**whole.state_dict(), **net.body.state_dict()})
                net.body = whole
            self.network.expert.requires_grad_(False)
            self.network.train()
        else:
            self.network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.network.apprentice.parameters(), lr=4e-4, weight_decay=1e-4)

    def step(self, images: Tensor, seeds: Sequence[int]) -> float:
        """Train on one batch in 0..255; returns the loss."""
        noisy, mask = white_noise(images, seeds)
        normalised = self.network.normalize(noisy)
        if not self.plain:
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            expert = self.network.expert(normalised)
        form = discrepancies_plain if self.plain else discrepancies
        loss = collaborative_loss(form(expert, self.network.apprentice(normalised)), mask)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def epoch(self, images: Tensor, batch: int, epoch: int) -> tuple[float, float]:
        """Seconds and the first step's loss of one epoch."""
        start, first = time.perf_counter(), None
        for i in range(0, len(images), batch):
            part = images[i : i + batch]
            loss = self.step(part, [image_seed(0, epoch, i + j) for j in range(len(part))])
            first = loss if first is None else first
        return time.perf_counter() - start, float(first or 0.0)


def main(words: Sequence[str] | None = None) -> None:
    """Print the ratio of images per second, both losses and both peaks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["plain", "ours"], help="one epoch of one loop, printing its peak memory")
    options = parser.parse_args(words)
    images = torch.randint(0, 256, (options.images, 3, 256, 256)).float()
    if options.only:
        Loop(options.only).epoch(images, options.batch, 0)
        print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    # first, while this process is small: Linux counts a parent's size at the fork into its child's peak
    peaks = {name: _peak(name, options.batch) for name in ("plain", "ours")}
    loops = {"plain": Loop("plain"), "ours": Loop("ours")}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    first: dict[str, float] = {}
    for epoch in range(options.rounds + 1):
        for name, loop in loops.items():
            taken, loss = loop.epoch(images, options.batch, epoch)
            if epoch == 0:
                first[name] = loss  # the same weights and batch: the losses must agree; this round only warms up
            else:
                seconds[name].append(taken)
    ratio = statistics.median(p / o for p, o in zip(seconds["plain"], seconds["ours"], strict=True))
    print(f"first loss        plain {first['plain']:.6f}   ours {first['ours']:.6f}")
    for name, values in seconds.items():
        print(f"{name:5}  {options.images / statistics.median(values):6.2f} images/s   peak {peaks[name]:.0f} MiB")
    print(f"ratio  {ratio:.2f} times as many images per second (median of {options.rounds} paired epochs)")
    if abs(first["plain"] - first["ours"]) > 1e-4 * max(1.0, abs(first["plain"])):
        sys.exit("the losses differ by more than 1e-4")


def _peak(name: str, batch: int) -> float:
    words = [sys.executable, __file__, "--only", name, "--images", str(2 * batch), "--batch", str(batch)]
    return float(json.loads(subprocess.check_output(words, text=True))["peak_mib"])


if __name__ == "__main__":
    main()
