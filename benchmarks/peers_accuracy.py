"""Fit one of anomalib's models and write its raw maps: the child of `accuracy.py`, run by a Python that has anomalib.

    python benchmarks/peers_accuracy.py JOB

JOB is a folder that the parent fills and empties:

    job.json             method, seed, backbone, levels, mean, std, device, coreset, epochs
    expert.safetensors   the expert's weights under timm's names
    fit.npy, judge.npy   (N, 3, h, w) float32 in 0..255: good images to fit, images to judge
    maps/00000.npy       written: the (h, w) float32 map of each image to judge
    done.json            written last: its (N,) image scores, and versions

Maps and scores are what the model itself gives: anomalib's post-processor, which normalises them, is switched off. Its
own Lightning modules bring the models, losses and optimisers; only the loop is ours, as its engine would bring the
post-processor, and a stop by figures of test images, back. EfficientAD is not here: its teacher and its other images
come from a hub.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import timm
import torch
from anomalib.models import MHPatchcore, Padim, Patchcore, Stfpm, Supersimplenet
from safetensors.torch import load_file
from torch import Tensor

BATCH = 32
CHANNELS = 100
"""What PaDiM keeps of all levels' channels, drawn by chance; its authors' number for a small backbone."""


class Peer:
    """A model of anomalib on the job's expert."""

    def __init__(self, folder: Path) -> None:
        self.job: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        gpu = self.job["device"] == "cuda" or (self.job["device"] == "auto" and torch.cuda.is_available())
        self.device = torch.device("cuda" if gpu else "cpu")
        torch.manual_seed(self.job["seed"])
        self.module = self._build(self.job["method"]).to(self.device)
        self._load(load_file(folder / "expert.safetensors"))

    def _build(self, method: str) -> Any:
        backbone, levels = self.job["backbone"], self.job["levels"]
        bare = {"pre_processor": False, "post_processor": False, "evaluator": False, "visualizer": False}
        create = timm.create_model

        def offline(*words: Any, **options: Any) -> Any:
            return create(*words, **{**options, "pretrained": False})  # some cannot be told not to ask a hub

        with mock.patch.object(timm, "create_model", offline):
            if method == "padim":
                return Padim(backbone=backbone, layers=levels, pre_trained=False, n_features=CHANNELS, **bare)
            if method == "patchcore":  # the two coarser levels, as its authors take
                ratio = self.job["coreset"]
                return Patchcore(
                    backbone=backbone, layers=levels[1:], pre_trained=False, coreset_sampling_ratio=ratio, **bare
                )
            if method == "mhpatchcore":
                return MHPatchcore(backbone=backbone, layers=levels[1:], pre_trained=False, **bare)
            if method == "supersimplenet":
                return Supersimplenet(backbone=backbone, layers=levels[1:], **bare)
            return Stfpm(backbone=backbone, layers=levels, **bare)

    def _load(self, state: dict[str, Tensor]) -> None:
        """Give the expert its weights; stages behind the last level, which anomalib computes in vain, keep none."""
        model = self.module.model
        expert = getattr(model, "teacher_model", None) or model.feature_extractor
        expert = getattr(expert, "feature_extractor", expert) if self.job["method"] == "supersimplenet" else expert
        missing, unknown = expert.feature_extractor.load_state_dict(state, strict=False)
        last = max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=0)
        needed = [name for name in missing if not (name.startswith("blocks.") and int(name.split(".")[1]) > last)]
        if needed or unknown:
            raise SystemExit(f"the expert's weights do not fit: {[*needed, *unknown][0]} is in one of both only")

    def batches(self, images: Any, order: Any) -> Iterator[Tensor]:
        """Normalised (B, 3, h, w) batches, in that order."""
        mean, std = (torch.tensor(self.job[key]).view(3, 1, 1) for key in ("mean", "std"))
        for start in range(0, len(order), BATCH):
            chosen = torch.from_numpy(np.stack([images[i] for i in order[start : start + BATCH]]))
            yield ((chosen / 255 - mean) / std).to(self.device)

    def fit(self, images: Any) -> None:
        """Learn from good images."""
        self.module.train()
        if self.job["method"] == "stfpm":
            self._train(images)
        elif self.job["method"] == "supersimplenet":
            self._train_with_schedule(images)
        else:
            # MH-PatchCore learns projection, covariance and bank one after another
            for _ in range(2 if self.job["method"] == "mhpatchcore" else 0):
                self._look(images)
            self._look(images)
        self.module.eval()

    def _look(self, images: Any) -> None:
        for batch in self.batches(images, range(len(images))):
            if self.job["method"] == "mhpatchcore":
                self.module.training_step(SimpleNamespace(image=batch))
            else:
                self.module.model(batch)
        self.module.fit()

    def _train_with_schedule(self, images: Any) -> None:
        """SuperSimpleNet: the optimizer and schedule of its module, which asks its trainer for the number of epochs."""
        epochs = self.job["epochs"]
        self.module.trainer = SimpleNamespace(max_epochs=epochs)
        (optimizer,), (scheduler,) = self.module.configure_optimizers()
        for epoch in range(epochs):
            for batch in self.batches(images, torch.randperm(len(images)).tolist()):
                anomaly_map, score, masks, labels = self.module.model(images=batch)
                loss = self.module.loss(pred_map=anomaly_map, pred_score=score, target_mask=masks, target_label=labels)
                if not torch.isfinite(loss):
                    raise SystemExit(f"the loss is not a number in epoch {epoch + 1}")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            scheduler.step()

    def _train(self, images: Any) -> None:
        optimizer = self.module.configure_optimizers()
        for epoch in range(self.job["epochs"]):
            for batch in self.batches(images, torch.randperm(len(images)).tolist()):
                loss = self.module.loss(*self.module.model(batch))
                if not torch.isfinite(loss):
                    raise SystemExit(f"the loss is not a number in epoch {epoch + 1}")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    @torch.no_grad()
    def judge(self, images: Any) -> Iterator[tuple[np.ndarray, float]]:
        """The (h, w) map and the image score of each image."""
        for batch in self.batches(images, range(len(images))):
            out = self.module.model(batch)
            yield from zip(out.anomaly_map[:, 0].float().cpu().numpy(), out.pred_score.flatten().tolist(), strict=True)


def main(folder: Path) -> None:
    """Do the job."""
    peer = Peer(folder)
    peer.fit(np.load(folder / "fit.npy", mmap_mode="r"))
    (folder / "maps").mkdir()
    scores = []
    for i, (anomaly_map, score) in enumerate(peer.judge(np.load(folder / "judge.npy", mmap_mode="r"))):
        np.save(folder / "maps" / f"{i:05d}.npy", anomaly_map)
        scores.append(score)
    versions = {name: metadata.version(name) for name in ("anomalib", "torch", "timm")}
    (folder / "done.json").write_text(json.dumps({"scores": scores, "versions": versions}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
