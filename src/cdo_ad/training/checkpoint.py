"""A training in progress on disk: checkpoint and logs, beside the run folder that it will become."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

from cdo_ad import bundle as bundles
from cdo_ad.config import Config
from cdo_ad.errors import BundleError, ConfigError, needs_extra

with needs_extra("train", "training"):
    import torch

    from cdo_ad.method.network import CdoNetwork

__all__ = ["COLUMNS", "Work"]

COLUMNS = ("epoch", "loss", "lr", "images_per_second", "seconds")
"""Of the training log."""


class Work:
    """The folder of a training in progress: checkpoint and logs."""

    def __init__(self, out: Path, config: Config, data_fingerprint: str, resume: bool, owner: bool) -> None:
        """Make the folder, or read it back.

        Args:
            out: the run folder to be.
            config: must be that of the interrupted training, if it is resumed.
            data_fingerprint: likewise.
            resume: go on with what is there.
            owner: whether this process, of several, makes and removes files.

        Raises:
            BundleError: nothing to resume.
            ConfigError: other settings or images than those of the interrupted training.
        """
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
            raise ConfigError("--resume: the good images are not those of the interrupted training: start anew")
        before, now = state["identity"]["settings"], self.identity["settings"]
        for key in now:
            if before.get(key) != now[key]:
                raise ConfigError(
                    f"--resume: {key} was {before.get(key)!r} and is {now[key]!r}: give the same settings or start anew"
                )
        return state

    def save(self, network: CdoNetwork, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """Keep the state after a whole epoch; an older one stays until it is written."""
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
        """Write the log of the epochs, and TensorBoard's, into the run folder."""
        with (folder / bundles.LOG).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
        if (self.folder / "tensorboard").is_dir():
            shutil.copytree(self.folder / "tensorboard", folder / "tensorboard")

    def remove(self) -> None:
        """Remove the folder: the run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)
