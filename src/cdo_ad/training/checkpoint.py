"""A training in progress on disk: checkpoint and logs, beside the run folder that it will become."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from cdo_ad import bundle as bundles
from cdo_ad.config import Config
from cdo_ad.errors import BundleError, ConfigError, needs_extra
from cdo_ad.files import writing

with needs_extra("train", "training"):
    import torch

__all__ = ["COLUMNS", "AfterInterruption", "Work"]

COLUMNS = ("epoch", "loss", "lr", "images_per_second", "seconds")
"""Of the training log."""
AfterInterruption = Literal["refuse", "resume", "discard"]
"""What to do with an interrupted training of the same run folder."""


class Work:
    """The folder of a training in progress, `.NAME.training` beside the run folder NAME."""

    def __init__(
        self, out: Path, config: Config, data_fingerprint: str, interrupted: AfterInterruption, owner: bool
    ) -> None:
        """Make the folder, or read it back.

        Args:
            out: the run folder to be.
            config: must be that of the interrupted training, if it is resumed.
            data_fingerprint: likewise.
            interrupted: what to do with an interrupted training that is there.
            owner: whether this process, of several, makes and removes files.

        Raises:
            BundleError: nothing to resume, a damaged checkpoint, or an interrupted training that must not be lost.
            ConfigError: other settings or images than those of the interrupted training.
            OutputError: the folder cannot be written to.
        """
        self.out = out
        self.folder = out.resolve().parent / f".{out.resolve().name}.training"
        self.checkpoint = self.folder / "checkpoint.pt"
        self.identity: dict[str, Any] = {"settings": json.dumps(config.to_json()), "fingerprint": data_fingerprint}
        self.rows: list[dict[str, float]] = []
        self.state: dict[str, Any] | None = None
        if interrupted == "resume":
            self.state = self._read()
            self.rows = self.state["rows"]
        elif interrupted == "refuse" and self.checkpoint.is_file():
            raise BundleError(
                f"an interrupted training of {out} is there ({self._progress()}): go on with it with  --resume , or "
                "discard it with  --restart"
            )
        elif owner:  # one process of several makes the folder
            shutil.rmtree(self.folder, ignore_errors=True)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def _progress(self) -> str:
        try:
            state = self._load()
            return f"{state['epoch']} of {json.loads(state['identity']['settings'])['epochs']} epochs are done"
        except (BundleError, KeyError, TypeError, ValueError):
            return "its checkpoint is damaged"

    def _load(self) -> dict[str, Any]:
        """The checkpoint; never executes what is in the file, and refuses one that was cut off or changed."""
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            if not {"identity", "epoch", "apprentice", "optimizer", "rows"} <= state.keys():
                raise ValueError("entries are missing")
        except Exception as error:  # torch raises many kinds for a damaged file
            raise BundleError(
                f"{self.checkpoint} is damaged ({str(error).splitlines()[0]}): start anew with  --restart"
            ) from error
        found: dict[str, Any] = state
        return found

    def _read(self) -> dict[str, Any]:
        if not self.checkpoint.is_file():
            raise BundleError(f"nothing to resume for {self.out}: no interrupted training is there; leave --resume out")
        state = self._load()
        if state["identity"]["fingerprint"] != self.identity["fingerprint"]:
            raise ConfigError("--resume: the good images are not those of the interrupted training: use  --restart")
        before, now = (json.loads(identity["settings"]) for identity in (state["identity"], self.identity))
        for key in now:
            if before.get(key) != now[key]:
                raise ConfigError(
                    f"--resume: {key} was {before.get(key)!r} and is {now[key]!r}: give the same settings, or start "
                    "anew with  --restart"
                )
        return state

    def save(self, apprentice: dict[str, Any], optimizer: dict[str, Any], epoch: int) -> None:
        """Keep the state after a whole epoch; an older one stays until it is written. Raises OutputError."""
        state = {
            "identity": self.identity,
            "epoch": epoch,
            "apprentice": apprentice,
            "optimizer": optimizer,
            "rows": self.rows,
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        with writing(self.checkpoint):
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # torch's writer reports a full disk so
                temporary.unlink(missing_ok=True)
                raise OSError(28, "the disk is full or cannot be written to", str(self.checkpoint)) from error
            temporary.replace(self.checkpoint)

    @contextmanager
    def board(self, owner: bool) -> Iterator[Any]:
        """TensorBoard's writer; None for processes that are not the owner."""
        if not owner:
            yield None
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import, so only where a training starts

        writer = SummaryWriter(str(self.folder / "tensorboard"))
        try:
            yield writer
        finally:
            writer.close()

    def move_logs(self, folder: Path) -> None:
        """Write the log of the epochs, and TensorBoard's, into the run folder."""
        with (folder / bundles.LOG).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
        if (self.folder / "tensorboard").is_dir():
            shutil.copytree(self.folder / "tensorboard", folder / "tensorboard")

    def remove(self) -> None:
        """Remove the folder: the run is complete, or nothing of it is worth keeping."""
        shutil.rmtree(self.folder, ignore_errors=True)
