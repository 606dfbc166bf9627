"""One job of a sweep: train and evaluate a run. It may be killed at any moment and called again."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.config import Config
from cdo_ad.data import read_dataset
from cdo_ad.data.split import fingerprint
from cdo_ad.errors import BundleError, BusyError, CdoError, CdoWarning, ConfigError, DataError
from cdo_ad.evaluation.results import evaluate_run, images_fingerprint, read_results

__all__ = ["Fingerprints", "Job", "Outcome", "fingerprints", "finished", "run_job", "trained"]


@dataclass(frozen=True)
class Job:
    """A run to be trained and evaluated."""

    data: Path
    """The data set's folder; full, since the job may run in another place."""
    layout: str
    category: str | None
    recipe: str
    config: Config
    """All settings, the seed among them."""
    out: Path
    """The run folder; full."""
    device: str = "auto"
    memory_budget: int = 2**30
    """Bytes of decoded images that the training keeps in memory."""

    @property
    def name(self) -> str:
        """Category, recipe and seed, for people."""
        return " ".join([*([self.category] if self.category else []), self.recipe, f"seed {self.config.seed}"])


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: Job
    found: bool = False
    """True where an earlier call had finished it."""
    error: str = ""
    """Why it failed; empty where all went well."""
    image_auroc: float = float("nan")
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    """Warnings of the training and the evaluation."""

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.job.out


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Of a category's data as it is now."""

    good: str
    """Of the images to learn from, as a run's `DataRecord` holds it."""
    test: str
    """Of the test images, their masks and labels, as an evaluation holds it."""


def fingerprints(job: Job) -> Fingerprints:
    """Read every file of a job's data.

    Raises:
        ConfigError, DataError: as `cdo_ad.read_dataset`; DataError also where there is no test image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training says them
        samples = read_dataset(job.data, job.layout, job.category)
    if not job.config.depth:
        samples = [sample.without_depth() for sample in samples]
    test = [sample for sample in samples if sample.split == "test"]
    if not test:
        raise DataError(f"{job.data}: {job.category or 'the data set'} has no test image to evaluate the runs on")
    return Fingerprints(fingerprint([s for s in samples if s.split != "test"], job.data), images_fingerprint(test))


def finished(job: Job, images: Fingerprints) -> float | None:
    """The image AUROC of a job that is finished: trained and evaluated on the same images; else None.

    Args:
        job: whose run folder is looked at.
        images: its data as it is now.
    """
    bundle = trained(job, images)
    if bundle is None:
        return None
    try:
        measured = read_results(job.out).metrics
    except BundleError:
        return None
    own = {name: calibrated.image_threshold for name, calibrated in bundle.calibration.categories.items()}
    same_images = list(measured.data.fingerprints.values()) == [images.test] and measured.data.at_size is None
    return float(measured.image.auroc) if same_images and measured.thresholds == own else None


def trained(job: Job, images: Fingerprints) -> Bundle | None:
    """The job's run, if it is complete and was made with the same settings and images."""
    try:
        bundle = read_bundle(job.out)
        bundle.weights()
    except BundleError:
        return None
    wanted, had = job.config.to_json(), bundle.config.to_json()
    free = ("image_height", "image_width") if job.config.image_height == 0 else ()  # chosen from the images
    same_settings = all(wanted[key] == had[key] for key in wanted if key not in free)
    same_rate = bundle.calibration.false_alarm_rate == job.config.false_alarm_rate
    return bundle if same_settings and same_rate and bundle.data.fingerprint == images.good else None


def run_job(job: Job) -> Outcome:
    """Train and evaluate; what is there of an earlier attempt, even of one that was killed, is gone on with.

    Returns:
        What became of it; an error of this package is in it and does not go further.
    """
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            images = fingerprints(job)
            auroc = finished(job, images)
            if auroc is None:
                if trained(job, images) is None:
                    _train(job)
                _, metrics = evaluate_run(
                    job.out, job.data, layout=job.layout, category=job.category, device=job.device
                )
                auroc = float(metrics.image.auroc)
                if metrics.failed:
                    unread = f"{metrics.failed} test images could not be read; they are in no metric"
                    warnings.warn(unread, CdoWarning, stacklevel=1)
        except (CdoError, OSError, MemoryError, RuntimeError) as error:
            return Outcome(job, error=str(error) or type(error).__name__, seconds=time.perf_counter() - start)
    notes = tuple(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, CdoWarning)))
    return Outcome(job, image_auroc=auroc, seconds=time.perf_counter() - start, notes=notes)


def _train(job: Job) -> None:
    """Train; an interrupted training of the same settings and images goes on, any other one is begun anew."""
    from cdo_ad.training.train import train

    def start(interrupted: Literal["resume", "discard"]) -> None:
        train(
            job.data, job.out, job.config, layout=job.layout, category=job.category, device=job.device,
            interrupted=interrupted, memory_budget=job.memory_budget,
        )  # fmt: skip

    if (job.out.parent / f".{job.out.name}.training" / "checkpoint.pt").is_file():
        try:
            return start("resume")
        except BusyError:
            raise
        except (ConfigError, BundleError):  # of other settings or images, or damaged
            pass
    start("discard")
