"""From uploads and corrections to versions: what a job needs, and what is done once it succeeded."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np

from cdo_ad import recipes
from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.errors import ConfigError
from cdo_ad.files import write_bytes
from cdo_ad.server.errors import ConflictError
from cdo_ad.server.serving.decoding import decode, png_bytes
from cdo_ad.server.store.audit import AuditTrail
from cdo_ad.server.store.catalogue import Catalogue
from cdo_ad.server.store.history import History
from cdo_ad.server.store.images import ImageStore
from cdo_ad.server.teaching.jobs import Jobs
from cdo_ad.server.teaching.uploads import Uploads

__all__ = ["SETTINGS", "School", "summary_of"]

SETTINGS = frozenset(
    ["epochs", "image_height", "image_width", "budget", "seed", "branches", "calibration", "score_top",
     "normalize_brightness", "false_alarm_rate", "held_out_share", "batch_size"]
)  # fmt: skip
"""Settings that a client may change: none of them names a file or a download."""


class School:
    """Teaches products and adapts their runs."""

    def __init__(
        self, folder: Path, jobs: Jobs, uploads: Uploads, catalogue: Catalogue, history: History, images: ImageStore,
        audit: AuditTrail, device: str,
    ) -> None:  # fmt: skip
        """Write runs below `folder`/runs."""
        self._folder, self._jobs, self._uploads, self._catalogue = folder, jobs, uploads, catalogue
        self._history, self._images, self._audit, self._device = history, images, audit, device

    def check(self, product: str, recipe: str, settings: dict[str, Any], by: str) -> dict[str, Any]:
        """Look for what is wrong with a product's uploads; returns the job. Raises as `train`."""
        self._require_images(product)
        _config(recipe, settings)
        target = self._target()
        self._uploads.snapshot(product, target / "data")
        return self._jobs.submit("check", product, by, self._job(target, recipe, settings))

    def train(self, product: str, recipe: str, settings: dict[str, Any], by: str, note: str) -> dict[str, Any]:
        """Train a new version from a product's uploads; returns the job.

        Raises:
            ConfigError: an unknown recipe or setting, or a value out of its range; fewer than two images.
            ConflictError: too many jobs wait.
        """
        self._require_images(product)
        _config(recipe, settings)
        target = self._target()
        count = self._uploads.snapshot(product, target / "data")
        job = {**self._job(target, recipe, settings), "out": str(target / "run")}
        if (region := self._uploads.region(product)) is not None:
            write_bytes(target / "region.png", region)
            job["region"] = str(target / "region.png")

        def done(_: dict[str, Any]) -> dict[str, Any]:
            return self._register(product, target / "run", by, note or f"taught with {count} good images", {})

        self._audit.add(by, "train", product=product, images=count, recipe=recipe, region="region" in job)
        return self._jobs.submit("train", product, by, job, done)

    def adapt(self, product: str, epochs: int, by: str, note: str) -> dict[str, Any]:
        """Make a new version from the active one and the corrections that no version has learned from.

        Raises:
            NotFoundError: no such product, or the image of a correction is gone.
            ConflictError: no active version, or nothing to learn from.
        """
        active = self._catalogue.product(product).active
        corrections = self._history.corrections(product)
        if active is None:
            raise ConflictError(f"{product} has no active version: activate one")
        if not corrections:
            raise ConflictError(f"there is no new correction of {product}: mark false alarms and missed defects first")
        target = self._target()
        counts = self._write_corrections(corrections, target)
        job = {
            "run": self._catalogue.version(product, active).run, "out": str(target / "run"), "epochs": epochs,
            "device": self._device, "scratch": str(target),
            **{kind: str(target / kind) if counts[kind] else None for kind in ("good", "bad")},
        }  # fmt: skip

        def done(result: dict[str, Any]) -> dict[str, Any]:
            words = note or f"version {active} and {len(corrections)} corrections"
            more = {"adapted_from": active, "changes": result["changes"]}
            found = self._register(product, target / "run", by, words, more)
            self._history.mark_used([each["id"] for each in corrections], found["version"])
            return found

        self._audit.add(by, "adapt", product=product, version=active, corrections=len(corrections))
        return self._jobs.submit("adapt", product, by, job, done)

    def _register(self, product: str, run: Path, by: str, note: str, more: dict[str, Any]) -> dict[str, Any]:
        summary = {**summary_of(read_bundle(run)), **more}
        version = self._catalogue.add_version(product, run.resolve(), by, note, summary)
        self._audit.add(by, "new version", product=product, version=version.number, weights=summary["weights"])
        return {"version": version.number}

    def _write_corrections(self, corrections: list[dict[str, Any]], target: Path) -> dict[str, int]:
        """Images as files, and masks from the boxes; how many of each kind."""
        counts = {"good": 0, "bad": 0}
        for each in corrections:
            kind = "good" if each["verdict"] == "false alarm" else "bad"
            counts[kind] += 1
            image = decode(self._images.read(each["image"]), each["inspection"])
            write_bytes(target / kind / f"{each['inspection']}.png", png_bytes(image))
            if kind == "bad":
                mask = np.zeros(image.shape[:2], np.uint8)
                for x, y, width, height in each["boxes"]:
                    mask[y : y + height, x : x + width] = 255
                write_bytes(target / kind / "masks" / f"{each['inspection']}.png", png_bytes(mask))
        return counts

    def _job(self, target: Path, recipe: str, settings: dict[str, Any]) -> dict[str, Any]:
        about = {"recipe": recipe, "settings": settings, "device": self._device}
        return {"data": str(target / "data"), "scratch": str(target), **about}

    def _target(self) -> Path:
        return self._folder / "runs" / uuid.uuid4().hex

    def _require_images(self, product: str) -> None:
        if (count := len(self._uploads.list(product))) < 2:
            raise ConfigError(f"{product} has {count} good images: upload 20 or more, so that 5 % can be guaranteed")


def summary_of(bundle: Bundle) -> dict[str, Any]:
    """What the list of versions says of a run."""
    calibration = bundle.calibration
    return {
        "weights": bundle.weights_sha256,
        "recipe": bundle.config.recipe,
        "good_images": len(bundle.data.images) + len(bundle.data.held_out),
        "defects": len(bundle.data.defects),
        "rate": calibration.false_alarm_rate,
        "guaranteed": calibration.guaranteed,
        "categories": list(calibration.categories),
        "input_size": list(bundle.model.image_size),
        "promise": calibration.summary(),
        "seed": bundle.provenance.seed,
    }


def _config(recipe: str, settings: dict[str, Any]) -> None:
    if unknown := sorted(set(settings) - SETTINGS):
        raise ConfigError(f"the setting {unknown[0]!r} cannot be changed from here: choose from {', '.join(SETTINGS)}")
    if recipes.get(recipe).replace(**settings).depth:
        raise ConfigError(
            f"the recipe {recipe!r} needs point clouds, and only images are uploaded here: choose another"
        )
