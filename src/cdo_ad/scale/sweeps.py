"""A run for each category, recipe and seed: trained and evaluated side by side, then put in one table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdo_ad import recipes as all_recipes
from cdo_ad.bundle import is_run
from cdo_ad.data import list_categories
from cdo_ad.errors import CdoError, ConfigError, Interrupted
from cdo_ad.files import writing
from cdo_ad.reporting.tables import Table, table
from cdo_ad.scale.cluster import Resources, cluster
from cdo_ad.scale.jobs import Fingerprints, Job, Outcome, fingerprints, finished, run_job

__all__ = ["Outcome", "Sweep", "sweep"]

RETRIES = 3
"""A job whose process died is started again as often."""
MEMORY_BUDGET = 4 * 2**30
"""Bytes of decoded images that a training alone keeps in memory at the most."""


@dataclass(frozen=True)
class Sweep:
    """What became of all jobs."""

    outcomes: tuple[Outcome, ...]
    """In the order of categories, recipes and seeds."""
    table: Table | None
    """Of the runs that were made; None where there is none."""

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Jobs that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.error)


def sweep(
    data: Path | str,
    *,
    recipes: Sequence[str] = ("lite0",),
    seeds: int | Sequence[int] = 3,
    settings: Sequence[str] = (),
    categories: Sequence[str] | None = None,
    out: Path | str = "sweep",
    layout: str = "auto",
    device: str = "auto",
    cpus: int | None = None,
    ray: str | None = None,
    tell: Callable[[Outcome], None] = lambda outcome: None,
) -> Sweep:
    """Train and evaluate a run for each category, recipe and seed, as Ray tasks.

    A job whose run is there, made with the same settings from the same images and evaluated, is not repeated; a
    training that was interrupted goes on. A job that fails is reported, and the others are done.

    Args:
        data: the data set's folder; seen under the same path by all machines of the cluster.
        recipes: names of `cdo_ad.recipes`.
        seeds: a number of seeds, counted from the recipe's own; or the seeds.
        settings: changes to each recipe, in the form `key=value`.
        categories: only these; None for all.
        out: the runs' folder, seen by all machines: RECIPE/CATEGORY/seed_N, where changed settings add a few letters
            to the recipe's name.
        layout: see `cdo_ad.read_dataset`.
        device: `auto` (a GPU for each job, where the cluster has GPUs), `cpu`, or as in `cdo_ad.train`.
        cpus: for each job; None for 1, or with GPUs for an equal share of the CPUs.
        ray: address of a Ray cluster; None for a Ray on this machine that ends with the call.
        tell: called with each outcome as it comes.

    Raises:
        ConfigError: an unknown recipe, setting, category or layout; no seed; no cluster at the address.
        DataError: `data` cannot be used.
        OutputError: `out` cannot be written to.
        MissingExtraError: Ray is not installed.
    """
    jobs = _jobs(Path(data), recipes, seeds, settings, categories, Path(out), layout)
    with writing(out):
        Path(out).mkdir(parents=True, exist_ok=True)
    outcomes: dict[Path, Outcome] = {}
    for outcome in _found(jobs):
        outcomes[outcome.run] = outcome
        tell(outcome)
    waiting = [job for job in jobs if job.out not in outcomes]
    if waiting:
        try:
            with cluster(ray, "a sweep") as there:
                for outcome in _done(waiting, there, device, cpus):
                    outcomes[outcome.run] = outcome
                    tell(outcome)
        except (KeyboardInterrupt, Interrupted):
            raise Interrupted("what is finished stays: the same command does the rest") from None
    in_order = tuple(outcomes[job.out] for job in jobs)
    runs = [outcome.run for outcome in in_order if not outcome.error]
    return Sweep(in_order, table(runs) if runs else None)


def _jobs(
    data: Path,
    recipes: Sequence[str],
    seeds: int | Sequence[int],
    settings: Sequence[str],
    categories: Sequence[str] | None,
    out: Path,
    layout: str,
) -> list[Job]:
    there = list_categories(data, layout)
    for name in categories or ():
        if name not in there:
            have = ", ".join(there) or "one category without a name"
            raise ConfigError(f"there is no category {name!r} in {data}: it has {have}")
    jobs = []
    chosen: list[str | None] = [*(categories or there)] or [None]
    for category in chosen:
        for recipe in dict.fromkeys(recipes):
            config = all_recipes.get(recipe).with_settings(settings)
            name = f"{recipe}-{_letters(settings)}" if settings else recipe
            for seed in _seeds(seeds, config.seed):
                place = out.absolute() / name / (category or data.resolve().name) / f"seed_{seed}"
                jobs.append(Job(data.resolve(), layout, category, recipe, config.replace(seed=seed), place))
    if not jobs:
        raise ConfigError("there is nothing to do: give a recipe and a seed at least")
    return jobs


def _seeds(seeds: int | Sequence[int], first: int) -> list[int]:
    if isinstance(seeds, int):
        if seeds < 1:
            raise ConfigError(f"the number of seeds must be 1 or more, got {seeds}")
        return list(range(first, first + seeds))
    return list(dict.fromkeys(seeds))


def _letters(settings: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(sorted(settings)).encode()).hexdigest()[:8]


def _found(jobs: Sequence[Job]) -> Iterator[Outcome]:
    """The jobs that an earlier call finished; each data set is read once."""
    images: dict[str | None, Fingerprints] = {}
    for job in jobs:
        if not is_run(job.out):
            continue
        try:
            if job.category not in images:
                images[job.category] = fingerprints(job)
            auroc = finished(job, images[job.category])
        except CdoError:  # the job itself will say so
            continue
        if auroc is not None:
            yield Outcome(job, found=True, image_auroc=auroc)


def _done(jobs: Sequence[Job], there: Resources, device: str, cpus: int | None) -> Iterator[Outcome]:
    """Let Ray do the jobs; their outcomes as they come."""
    import ray
    from ray.exceptions import RayError

    cpus, gpus = there.of_each(device, cpus)
    memory = MEMORY_BUDGET // there.at_once(cpus, gpus)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(run_job)
    on = device if gpus else "cpu"
    waiting = {
        task.options(name=job.name).remote(dataclasses.replace(job, device=on, memory_budget=memory)): job
        for job in jobs
    }
    while waiting:
        (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
        job = waiting.pop(ready)
        try:
            yield ray.get(ready)
        except RayError as error:
            yield Outcome(job, error=f"its process died {RETRIES + 1} times: {str(error).strip().splitlines()[0]}")
