"""Very many images: a model in each process of a Ray cluster, addresses in, Parquet out."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cdo_ad import errors
from cdo_ad.bundle import read_bundle
from cdo_ad.errors import BundleError, CdoError, Interrupted
from cdo_ad.files import exclusive, writing
from cdo_ad.inference.artifact import check_manifest, is_export
from cdo_ad.scale.cluster import cluster
from cdo_ad.scale.judging import Judge, Plan
from cdo_ad.scale.parts import Judged, Results
from cdo_ad.scale.sources import Fragment, fragments
from cdo_ad.scale.storage import Storage

__all__ = ["ScoreSummary", "score"]

WINDOWS = (200, 2000)
"""Fragments that are listed ahead, first few so that work begins soon: of image files at most two million addresses."""
RETRIES = 3
"""A fragment whose process died is judged again as often."""


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """What a call judged."""

    images: int = 0
    """Rows that were written."""
    anomalous: int = 0
    failed: int = 0
    """Images that could not be read; each has a row with its error."""
    known_images: int = 0
    """Image files that an earlier call had judged, wherever they lie."""
    known_parts: int = 0
    """Shards and groups of rows of this source that an earlier call had judged."""
    missing: tuple[str, ...] = ()
    """Why parts could not be judged or written; the next call tries them again."""


def score(
    run: Path | str,
    source: str | Path,
    *,
    out: str | Path,
    category: str | None = None,
    column: str | None = None,
    backend: str = "auto",
    device: str = "auto",
    processes: int | None = None,
    cpus: int | None = None,
    ray: str | None = None,
    options: Mapping[str, Any] | None = None,
    tell: Callable[[ScoreSummary], None] = lambda summary: None,
) -> ScoreSummary:
    """Judge all images at an address and write one row for each.

    May be called again with the same `out`, after a kill or when images came: only what is missing is judged. An image
    that cannot be read is a row with its error. Results of several sources may share a folder, those of several models
    not.

    Args:
        run: a run folder or an exported model; seen under the same path by all machines of the cluster.
        source: a folder with all below it, a file or a pattern: of images, of tar shards (WebDataset) or of Parquet
            files with a column of bytes; a path, or an address of any file system that fsspec knows, e.g. `s3://`.
        out: the folder for the results, likewise.
        category: what all images show, in a run of several categories; None lets the model recognise it.
        column: the column of bytes of Parquet files, where there are several.
        backend: see `cdo_ad.load`; `auto` takes the run's exported model where there is one.
        device: `auto` (a GPU for each process, where the cluster has GPUs), `cpu`, or as in `cdo_ad.load`.
        processes: each has the model once; None for as many as the cluster has room for.
        cpus: for each process; None for 1, or with GPUs for an equal share of the CPUs.
        ray: address of a Ray cluster; None for a Ray on this machine that ends with the call.
        options: of fsspec's file systems; most people set the environment instead.
        tell: called with what is done so far, after each part.

    Raises:
        BundleError: no complete run, or a damaged export.
        ConfigError: a run that looks at depth; a category that the run does not have; `out` holds results of another
            model; an address of an unknown kind; no cluster.
        DataError: there is nothing at `source`, or it cannot be listed. BusyError: another call writes to `out`.
        ModelError: the model gives values that are not numbers. OutputError: `out` cannot be written to.
        MissingExtraError: Ray, the engine or the storage's package is not installed.
    """
    run = Path(run).absolute()
    judged = model_of(run, category)
    there, place = Storage(str(source), options), Storage(str(out), options)
    with ExitStack() as stack:
        if place.local:
            with writing(place.root):
                Path(place.root).mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(Path(place.root)))
        results = Results(place, judged)
        todo = _Counted(fragments(there, results.known.missing, column), results)
        first = list(itertools.islice(todo, 1))
        summary = ScoreSummary(known_images=len(results.known))
        if first:
            resources = stack.enter_context(cluster(ray, "judging very many images"))
            each = resources.of_each(device, cpus)
            plan = Plan(
                run, there.root, place.root, category, backend, device if each[1] else "cpu", each[0], options,
                results.call,
            )  # fmt: skip
            count = processes or resources.at_once(*each)
            stack.enter_context(_kept())
            for window in _windows(itertools.chain(first, todo), WINDOWS):
                for answer in _judged(window, plan, count, each):
                    summary = _added(summary, answer)
                    tell(summary)
        return replace(summary, known_parts=todo.known)


@contextmanager
def _kept() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted("the parts that are written stay: the same command goes on") from None


class _Counted:
    """Fragments that are to be judged; counts those that are done."""

    def __init__(self, found: Iterable[Fragment], results: Results) -> None:
        self._found = iter(found)
        self._results = results
        self.known = 0

    def __iter__(self) -> Iterator[Fragment]:
        for fragment in self._found:
            if self._results.is_done(fragment):
                self.known += 1
            else:
                yield fragment


def _windows(todo: Iterable[Fragment], sizes: Sequence[int]) -> Iterator[list[Fragment]]:
    """Lists of fragments: the next one is filled while one is judged."""
    waiting = iter(todo)
    wanted = itertools.chain(sizes, itertools.repeat(sizes[-1]))
    with ThreadPoolExecutor(1) as pool:
        window = pool.submit(lambda: list(itertools.islice(waiting, next(wanted)))).result()
        while window:
            following = pool.submit(lambda: list(itertools.islice(waiting, next(wanted))))
            yield window
            window = following.result()


def model_of(run: Path, category: str | None) -> Judged:
    """What the results will say of their model; no engine is loaded for it."""
    if is_export(run):
        check_manifest(run)
        model = hashlib.sha256(run.with_name(f"{run.name}.sha256").read_bytes()).hexdigest()
        return Judged(model=model, thresholds=model, category=category)
    bundle = read_bundle(run)
    bundle.require_images_alone("score")
    if category is not None and len(bundle.calibration.categories) > 1:
        bundle.calibration.of(category)
    thresholds = hashlib.sha256(json.dumps(bundle.calibration.to_json(), sort_keys=True).encode()).hexdigest()
    return Judged(model=bundle.weights_sha256, thresholds=thresholds, category=category)


def _judged(
    window: list[Fragment], plan: Plan, processes: int, each: tuple[int, int]
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Let Ray judge fragments; its answers as they come, and one for each that is lost."""
    import ray.data
    from ray.exceptions import RayError

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is in the answers
    rows = [{"fragment": pickle.dumps(fragment)} for fragment in window]
    uris = {fragment.id: fragment.uri for fragment in window}
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.enable_progress_bars = False
    dataset.context.max_errored_blocks = -1  # a part whose process dies again and again does not end all others
    size = min(processes, len(rows))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*ray_remote_args")  # without a limit it tries for ever; no other way yet
        judged = dataset.map(
            Judge,
            fn_constructor_args=(plan,),
            # no more than one waits at each process: at the end all are busy as long as there is work
            compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
            num_cpus=each[0],
            num_gpus=each[1],
            max_task_retries=RETRIES,
        )
    try:
        for answer in judged.iter_rows():
            _raise(answer)
            uris.pop(answer["id"])
            yield answer
    except RayError as error:
        raise BundleError(f"Ray stopped ({str(error).strip().splitlines()[0]}): run the same command again") from error
    for uri in uris.values():
        yield {"images": 0, "anomalous": 0, "failed": 0, "error": f"{uri}: the process that judged it died"}


def _raise(answer: Mapping[str, Any]) -> None:
    """Errors of the model, the settings and the output end the call."""
    if answer["kind"]:
        kind = getattr(errors, answer["kind"], CdoError)
        raise kind(answer["error"])


def _added(summary: ScoreSummary, answer: Mapping[str, Any]) -> ScoreSummary:
    missing = (*summary.missing, answer["error"]) if answer["error"] else summary.missing
    return replace(
        summary,
        images=summary.images + answer["images"],
        anomalous=summary.anomalous + answer["anomalous"],
        failed=summary.failed + answer["failed"],
        missing=missing,
    )
