r"""The accuracy table: this package's recipes and anomalib's models on the same images, judged by the same metrics.

    python benchmarks/accuracy.py products ../shared/data/magnetic_tile /data/mvtec_ad /data/visa --seeds 0 1 2 \
        --peers-python ../peers/bin/python --out accuracy

Each data set is a folder in any layout (`auto` finds it; of MVTec AD, MVTec 3D-AD and VisA the folder of all products),
or the word `products` for the built-in ones, which are drawn.

- Every method of a seed fits the same good images, and its thresholds come from the same held-out ones.
- Peers run in the interpreter that `--peers-python` names (`peers_accuracy.py`). They get the images as our training
  reads them, at the size of the paper's form, and the same expert weights, and give raw maps and scores back.
- A recipe may be given with settings of its own: `--methods lite0 "lite0 mom=false"`. `--ablation` adds a list of them:
  each part of the default recipe alone and removed. What the apprentice's training does not depend on takes the
  apprentice of a run that is there.
- A finished cell (method, product, seed) stays in OUT/cells, so the same command goes on after an interruption. A cell
  of other settings or other images is computed anew. Tables are in OUT: accuracy.json, and .csv, .tex, .html each.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cdo_ad.training.job import train
from safetensors.torch import save_file

from cdo_ad import recipes
from cdo_ad.bundle import read_bundle, write_json
from cdo_ad.calibration import Calibration
from cdo_ad.cli.options import parse_size, say
from cdo_ad.config import Config, training_difference
from cdo_ad.data import fingerprint, list_categories, read_dataset, split_by_part, split_good
from cdo_ad.data.store import load_all
from cdo_ad.demo.products import PRODUCTS, make_dataset
from cdo_ad.errors import CdoError, ConfigError, DataError, MissingExtraError
from cdo_ad.evaluation.evaluate import Evaluation, evaluate
from cdo_ad.evaluation.results import write_results
from cdo_ad.evaluation.schema import Metrics
from cdo_ad.inference.detector import Detector, load
from cdo_ad.method.backbone import create_backbone
from cdo_ad.provenance import revision
from cdo_ad.reporting.table_files import to_text, write_table
from cdo_ad.reporting.tables import Measured, Row, Table, metrics_of, tabulate
from cdo_ad.training.adapt import refit
from cdo_ad.types import Sample

PEERS = {"padim": "PaDiM", "patchcore": "PatchCore", "stfpm": "STFPM"}
PEERS_RECIPE = "paper_lite0"
"""Input size, backbone and split settings of the peers are those of the paper's form."""
_PARTS = ("mom=false", "oom=false", "mom=false oom=false", "gamma=1", "schedule=one-cycle")
_KINDS = "synthesis=noise,perlin,cut,intensity,line,spot,smear"
ABLATION = (
    "",
    "density=false",  # the disagreement alone
    *(f"fusion_weights={shares}" for shares in ("0,1,0,0", "0,0,1,0", "0,0,0,1", "equal")),
    *(f"fusion_weights={','.join('0' if k == gone else '0.3333333' for k in range(4))}" for gone in range(4)),
    "density_context=0",
    "normalize_brightness=false",
    "score_top=0.01",
    *(f"{part}{alone}" for part in (*_PARTS, _KINDS) for alone in ("", " density=false")),
)
"""Settings of `lite0`: each branch alone, all with an equal say, and each removed from that; then the training's parts,
each with the density and without it."""
COLUMNS = ("method", "backbone", "input")


class PeerError(CdoError):
    """A peer that could not be run."""


@dataclass(frozen=True)
class Product:
    """One product of a data set."""

    root: Path
    category: str | None
    name: str
    samples: list[Sample]
    fingerprint: str


@dataclass(frozen=True)
class Cell:
    """A method on a product with a seed."""

    product: Product
    method: str
    config: Config
    folder: Path
    identity: dict[str, Any]
    """Everything that decides the figures; a cell kept with another is not this one."""

    @property
    def choice(self) -> tuple[str, str, str]:
        """Values of `COLUMNS`."""
        c, name = self.config, PEERS.get(self.method, f"CDO, {self.method.replace(' ', ', ')}")
        if self.method == "patchcore":
            name += f", coreset {100 * self.identity['coreset']:g} %"
        return name, c.backbone, f"{c.image_height}x{c.image_width}"


class Replay:
    """An engine that gives the maps which a peer has written: those of the image that `Peer` is about to judge."""

    name = "replay"

    def __init__(self, maps: dict[str, tuple[Path, float]]) -> None:
        self.maps, self.path = maps, ""

    def infer(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `cdo_ad.inference.engines.torch.Runtime.infer`; of one image."""
        file, score = self.maps[self.path]
        return np.load(file)[None], np.array([score], np.float32)

    def calibration(self, paths: Sequence[Path], rate: float) -> Calibration:
        """Thresholds from held-out good images, as ours are."""
        found = [self.maps[str(path)] for path in paths]
        return Calibration.fit([score for _, score in found], [float(np.load(f).max()) for f, _ in found], rate)


class Peer(Detector):
    """A detector that knows images by their files."""

    runtime: Replay

    def predict(self, image: np.ndarray, *, path: str = "", regions: bool = True) -> Any:
        """See `Detector.predict`."""
        self.runtime.path = path
        return super().predict(image, path=path, regions=regions)


def main(words: Sequence[str] | None = None) -> int:
    """Compute the cells that are missing, print and write a table a data set."""
    options = _options(words)
    documents = {}
    for name, root in _data_sets(options):
        products = list(_products(root, options.categories))
        cells = [cell for product in products for cell in _cells(name, product, options)]
        done, reasons = [], {}
        for number, cell in enumerate(cells, 1):
            label = f"[{name} {number}/{len(cells)}] {cell.product.name}, {cell.method}, seed {cell.config.seed}"
            try:
                record = _kept(cell) or _compute(cell, options)
            except CdoError as error:
                reasons[cell.product.name, cell.choice] = str(error)
                say(f"{label}: not run: {error}")
                continue
            done.append((cell, record))
            say(f"{label}: {_short(record['metrics'])}, {record['seconds']:.0f} s")
        table = _table(done, reasons, list(dict.fromkeys(cell.choice for cell in cells)), options)
        documents[name] = table.to_json()
        print(f"\n{name}\n{to_text(table)}\n", flush=True)
        for ending in (".csv", ".tex", ".html"):
            try:
                write_table(table, options.out / f"{name}{ending}")
            except MissingExtraError as error:
                say(str(error))
        write_json(options.out / "accuracy.json", {"data_sets": documents, "revision": revision()})
    return 0


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", nargs="*", default=["products"], help="folders, or the word products")
    parser.add_argument("--out", type=Path, default=Path("accuracy"))
    parser.add_argument("--methods", nargs="+", default=["lite0", PEERS_RECIPE, *PEERS], help="recipes and peers")
    parser.add_argument("--ablation", action="store_true", help="add each part of lite0 alone and removed")
    parser.add_argument("--categories", nargs="+", help="only these products")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="settings", nargs="+", default=[], metavar="KEY=VALUE", help="of every recipe")
    parser.add_argument("--at-size", help="HxW at which pixels are compared; default: each image's own size")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--drawn", type=int, default=120, help="good training images of each built-in product")
    parser.add_argument("--peers-python", type=Path, help="a Python interpreter that has anomalib")
    parser.add_argument("--coreset", type=float, default=0.01, help="share of the features that PatchCore keeps")
    parser.add_argument("--stfpm-epochs", type=int, default=100)
    options = parser.parse_args(words)
    options.methods += [f"lite0 {settings}".strip() for settings in ABLATION] if options.ablation else []
    options.methods = sorted(dict.fromkeys(options.methods), key=lambda method: method in PEERS)  # peers take our split
    options.seeds = list(dict.fromkeys(options.seeds))
    options.at_size = parse_size(options.at_size, "--at-size")
    return options


def _data_sets(options: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    names = [Path(data).resolve().name if data != "products" else data for data in options.data]
    if len(set(names)) < len(names):
        raise ConfigError(f"two data sets have one name: {', '.join(names)}: run them apart, or rename a folder")
    for name, data in zip(names, options.data, strict=True):
        root, n = Path(data), options.drawn
        if data == "products":
            root = options.out / "data" / f"drawn-{n}"
            for product in PRODUCTS:
                make_dataset(root, product, train=n, test_good=max(n // 3, 2), per_type=max(n // 15, 1))
        yield name, root


def _products(root: Path, wanted: Sequence[str] | None) -> Iterator[Product]:
    categories: Sequence[str | None] = list_categories(root) or [None]
    chosen = [c for c in categories if wanted is None or (c or root.resolve().name) in wanted]
    if not chosen:
        raise DataError(f"{root}: has no product {', '.join(wanted or ())}: it has {', '.join(map(str, categories))}")
    for category in chosen:
        samples = read_dataset(root, category=category)
        name = category or samples[0].category or root.resolve().name
        yield Product(root, category, name, samples, fingerprint(samples, root))


def _cells(data: str, product: Product, options: argparse.Namespace) -> Iterator[Cell]:
    for method in options.methods:
        for seed in options.seeds:
            name, *own = [PEERS_RECIPE] if method in PEERS else method.split()
            config = recipes.get(name).with_settings([*options.settings, *own]).replace(seed=seed)
            identity = {
                "method": method, "settings": config.to_json(), "images": product.fingerprint,
                "at_size": options.at_size and list(options.at_size),
            }  # fmt: skip
            identity |= {"coreset": options.coreset} if method == "patchcore" else {}
            identity |= {"epochs": options.stfpm_epochs} if method == "stfpm" else {}
            folder = options.out / "cells" / data / product.name / f"{'_'.join(method.split())}-{seed}"
            yield Cell(product, method, config, folder, identity)


def _kept(cell: Cell) -> dict[str, Any] | None:
    """The record of a finished cell; what is left of one with another identity is removed."""
    mark, record = cell.folder / "identity.json", cell.folder / "cell.json"
    if not mark.is_file() or json.loads(mark.read_text(encoding="utf-8")) != cell.identity:
        shutil.rmtree(cell.folder, ignore_errors=True)
        cell.folder.mkdir(parents=True)
        write_json(mark, cell.identity)
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None


def _compute(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    evaluation, versions = (_peer if cell.method in PEERS else _own)(cell, options)
    record = {
        "metrics": evaluation.metrics.to_json(), "failures": list(evaluation.failures), "versions": versions,
        "seconds": time.perf_counter() - start, "revision": revision(),
    }  # fmt: skip
    write_json(cell.folder / "cell.json", record)
    return record


def _own(cell: Cell, options: argparse.Namespace) -> tuple[Evaluation, dict[str, str]]:
    """Train a recipe, going on where it was interrupted, and evaluate it."""
    run, product = cell.folder / "run", cell.product
    if not run.is_dir():
        if twin := _trained_alike(cell):
            refit(twin, run, cell.config, device=options.device)
        else:
            resume = (cell.folder / ".run.training" / "checkpoint.pt").is_file()
            train(product.root, run, cell.config, category=product.category, device=options.device, resume=resume)
    evaluation = evaluate(load(run, backend="torch", device=options.device), product.samples, at_size=options.at_size)
    write_results(run, evaluation, product.root)
    return evaluation, read_bundle(run).provenance.versions


def _trained_alike(cell: Cell) -> Path | None:
    """A run of another cell whose apprentice is what this cell would train."""
    for mark in sorted(cell.folder.parent.glob("*/identity.json")):
        other, run = json.loads(mark.read_text(encoding="utf-8")), mark.with_name("run")
        same = other["images"] == cell.product.fingerprint and other["method"] not in PEERS
        if run.is_dir() and same and training_difference(other["settings"], cell.identity["settings"]) is None:
            return run
    return None


def _peer(cell: Cell, options: argparse.Namespace) -> tuple[Evaluation, dict[str, str]]:
    """Hand images and expert to the other interpreter, and judge the maps that come back."""
    if options.peers_python is None:
        raise PeerError("no --peers-python was given: name a Python that has anomalib")
    job, config = cell.folder / "job", cell.config
    shutil.rmtree(job, ignore_errors=True)
    job.mkdir()
    fit, held_out = _split(cell, options)
    judged = [*held_out, *(s.path for s in cell.product.samples if s.split == "test")]
    expert = create_backbone(config.backbone, config.image_size, config.weights)
    body: Any = expert.body
    save_file({k: v.contiguous() for k, v in body.state_dict().items()}, job / "expert.safetensors")
    np.save(job / "fit.npy", load_all(fit, config.image_size).numpy())
    np.save(job / "judge.npy", load_all(judged, config.image_size).numpy())
    document = {
        "method": cell.method, "seed": config.seed, "backbone": config.backbone, "mean": expert.mean,
        "std": expert.std, "levels": list(body.feature_info.out_indices), "device": options.device,
        "coreset": options.coreset, "epochs": options.stfpm_epochs,
    }  # fmt: skip
    write_json(job / "job.json", document)
    done = _run_child(options.peers_python, job)
    files = [job / "maps" / f"{i:05d}.npy" for i in range(len(judged))]
    replay = Replay(dict(zip(map(str, judged), zip(files, done["scores"], strict=True), strict=True)))
    calibration = replay.calibration(held_out, config.false_alarm_rate)
    evaluation = evaluate(Peer(replay, calibration), cell.product.samples, at_size=options.at_size)
    shutil.rmtree(job)
    return evaluation, done["versions"]


def _split(cell: Cell, options: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """Good images to fit and held-out ones: those of our run with this seed, else drawn as it would draw them."""
    for method in options.methods:
        run = cell.folder.with_name(f"{method}-{cell.config.seed}") / "run"
        if method in recipes.RECIPES and run.is_dir():
            bundle = read_bundle(run)
            return [bundle.data_root / name for name in bundle.provenance["data"]["fit"]], bundle.calibration_paths
    c, good = cell.config, [s for s in cell.product.samples if s.split != "test"]
    split = (split_by_part if c.keep_copies_together else split_good)(
        good, c.calibration_share, c.calibration_minimum, c.seed
    )
    return [s.path for s in split.fit], [s.path for s in split.calibration]


def _run_child(python: Path, job: Path) -> dict[str, Any]:
    words = [str(python), str(Path(__file__).with_name("peers_accuracy.py")), str(job)]
    try:
        subprocess.run(words, check=True, text=True, stdout=sys.stderr, stderr=subprocess.PIPE)
        done: dict[str, Any] = json.loads((job / "done.json").read_text(encoding="utf-8"))
        return done
    except subprocess.CalledProcessError as error:
        (job / "stderr.txt").write_text(error.stderr, encoding="utf-8")
        lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
        raise PeerError(f"{lines[-1]} (all of it: {job / 'stderr.txt'})") from error
    except OSError as error:
        raise PeerError(f"{python} cannot be run or gave nothing back ({error}): check --peers-python") from error


def _table(
    done: Sequence[tuple[Cell, dict[str, Any]]], reasons: dict[tuple[str, Any], str], order: list[Any],
    options: argparse.Namespace,
) -> Table:  # fmt: skip
    """Rows of what was measured, and of what is missing with the reason, each method's together."""
    measured = [
        Measured(str(cell.folder), cell.choice, cell.product.name, cell.config.seed,
                 metrics_of(Metrics.from_json(record["metrics"])), cell.product.fingerprint)
        for cell, record in done
    ]  # fmt: skip
    table = tabulate(COLUMNS, measured) if measured else Table(COLUMNS, (), ())
    missing = [Row(choice, f"{product}: not run", 0, {}) for product, choice in reasons]
    rows = [row for choice in order for row in (*table.rows, *missing) if row.settings == choice]
    published = [row for row in table.rows if row.kind == "published"]
    notes = [*table.notes, *dict.fromkeys(f"{choice[0]} was not run: {text}" for (_, choice), text in reasons.items())]
    return replace(table, rows=(*rows, *published), notes=(*notes, *_notes(done, options)))


def _notes(done: Sequence[tuple[Cell, dict[str, Any]]], options: argparse.Namespace) -> Iterator[str]:
    size = "the images' own size" if options.at_size is None else "{}x{}".format(*options.at_size)
    yield f"Pixels are compared at {size}. Every method fits and calibrates on the same good images; last epoch."
    peers = sorted({record["versions"].get("anomalib", "?") for cell, record in done if cell.method in PEERS})
    if peers:
        yield (
            f"PaDiM, PatchCore, STFPM: anomalib {', '.join(peers)}, its raw maps and image scores, on the features of "
            "the same expert weights (PatchCore: the two coarser of the three levels, as its authors take)."
        )
    if any(cell.method == "stfpm" for cell, _ in done):
        yield f"STFPM: {options.stfpm_epochs} epochs, batches of 32, anomalib's rate, no stop by test figures."
    if len(revisions := {str(record["revision"]) for _, record in done}) > 1:
        yield f"Cells are of several revisions of this source: {', '.join(sorted(revisions))}."


def _short(metrics: dict[str, Any]) -> str:
    shown = {"image AUROC": metrics["image"]["auroc"], "pixel AP": metrics["pixel"]["ap"]}
    return ", ".join(f"{name} {'-' if value is None else format(value, '.3f')}" for name, value in shown.items())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CdoError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")
