r"""The accuracy table: recipes of this package and anomalib's models on the same data sets, judged by the same metrics.

    python benchmarks/accuracy.py shared/data/casting /data/mvtec_ad --seeds 0 1 2 \
        --methods lite0 "lite0 normalize_brightness=false" paper_lite0 padim patchcore \
        --peers-python ../peers/bin/python --out accuracy

Each data set is a folder in any layout; of one with several categories each category is a row, and their mean.

- For each method: the share of defects found and of good images that raise a false alarm, at a promised rate of .05 and
  of .01; what would be found at the threshold that 5 % of the good *test* images exceed, which no user has, but which
  compares methods apart from their thresholds; image AUROC, that of the worst type of defect, pixel AP, AU-PRO up to
  .3; seconds of training and evaluation. Mean and standard deviation over seeds. A dash: too few good images for that
  rate, or no masks.
- A method is a recipe, with settings of its own where they follow, or one of anomalib's: padim, patchcore,
  mhpatchcore, supersimplenet, stfpm. Those run in the interpreter that `--peers-python` names (`peers_accuracy.py`), on
  the features of the same expert weights, and learn from the images that the paper's form learns from; their thresholds
  come from those that it holds out.
- A finished cell (method, category, seed) stays in OUT/cells, so the same command goes on after an interruption. A cell
  of other settings or other images is computed anew. The table is OUT/accuracy.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from cdo_ad import recipes
from cdo_ad.calibration import Calibration
from cdo_ad.cli.options import say
from cdo_ad.config import Config
from cdo_ad.conformal import GoodScores
from cdo_ad.data import list_categories, read_dataset, read_image
from cdo_ad.data.split import fingerprint
from cdo_ad.data.store import load_all
from cdo_ad.errors import CalibrationError, CdoError, ConfigError, Interrupted
from cdo_ad.evaluation.evaluate import Evaluation, evaluate
from cdo_ad.files import finite, write_json
from cdo_ad.inference.detector import Detector, load
from cdo_ad.inference.engines.base import Categories, Output
from cdo_ad.method.backbone import create_backbone
from cdo_ad.provenance import revision
from cdo_ad.training.material import gather
from cdo_ad.training.train import train
from cdo_ad.types import Sample

PEERS = {
    "padim": "PaDiM", "patchcore": "PatchCore", "mhpatchcore": "MH-PatchCore", "supersimplenet": "SuperSimpleNet",
    "stfpm": "STFPM",
}  # fmt: skip
PEERS_RECIPE = "paper_lite0"
"""Input size, backbone and held-out images of the peers are those of the paper's form."""
RATES = (0.05, 0.01)
COLUMNS = {
    "found_05": "found .05", "alarms_05": "alarms .05", "found_01": "found .01", "alarms_01": "alarms .01",
    "found_true_05": "true .05", "image_auroc": "AUROC", "worst_type": "worst type", "pixel_ap": "pixel AP",
    "aupro": "AU-PRO", "seconds": "seconds",
}  # fmt: skip
"""Numbers of a cell: key and title."""


class PeerError(CdoError):
    """A peer that could not be run."""


@dataclass(frozen=True)
class Cell:
    """A method on a category of a data set with a seed."""

    data: str
    root: Path
    category: str | None
    samples: list[Sample]
    method: str
    config: Config
    folder: Path
    identity: dict[str, Any]
    """Everything that decides the numbers; a cell kept with another is not this one."""

    @property
    def name(self) -> str:
        """Of the data set and the category."""
        return self.data if self.category is None else f"{self.data}/{self.category}"


class Replay:
    """An engine that gives back the maps which a peer has written, by the content of the image."""

    name = "replay"

    def __init__(self, found: dict[str, tuple[Path, float]]) -> None:
        self.found = found

    def infer(self, images: np.ndarray, categories: Categories | None = None) -> Output:
        """See `cdo_ad.inference.engines.base.Engine.infer`; of one image."""
        file, score = self.found[content(images[0])]
        return Output(np.load(file)[None], np.array([score], np.float32), np.zeros(1, np.int64))


def content(image: np.ndarray) -> str:
    """A name for an image's pixels."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def main(words: Sequence[str] | None = None) -> int:
    """Compute the cells that are missing, print and write the table."""
    options = _options(words)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    notes: list[str] = []
    cells = list(_cells(options))
    for number, cell in enumerate(cells, 1):
        label = f"[{number}/{len(cells)}] {cell.name}, {cell.method}, seed {cell.config.seed}"
        try:
            numbers = _kept(cell) or _compute(cell, options)
        except CdoError as error:
            notes.append(f"{cell.name}: {cell.method} was not run: {error}")
            say(f"{label}: not run: {error}")
            continue
        found.setdefault((cell.name, cell.method), []).append(numbers)
        say(f"{label}: AUROC {_shown(numbers['image_auroc'])}, {numbers['seconds']:.0f} s")
    rows = list(_rows(found))
    if len(revisions := {str(numbers["revision"]) for own in found.values() for numbers in own}) > 1:
        notes.append(f"cells are of several revisions of this source: {', '.join(sorted(revisions))}")
    write_json(options.out / "accuracy.json", {"rows": rows, "notes": notes, "revision": revision()})
    print("\n".join([*_lines(rows), *notes]), flush=True)
    return 0


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, help="folders of data sets")
    parser.add_argument("--out", type=Path, default=Path("accuracy"))
    parser.add_argument("--methods", nargs="+", default=["lite0"], help="recipes, with settings, and peers")
    parser.add_argument("--categories", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="settings", nargs="+", default=[], metavar="KEY=VALUE", help="of every recipe")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--peers-python", type=Path, help="a Python interpreter that has anomalib")
    parser.add_argument("--coreset", type=float, default=0.01, help="share of the features that PatchCore keeps")
    parser.add_argument("--epochs", type=int, default=20, help="of the peers that are trained by gradient")
    return parser.parse_args(words)


def _cells(options: argparse.Namespace) -> Iterator[Cell]:
    names = [root.resolve().name for root in options.data]
    if len(set(names)) < len(names):
        raise ConfigError(f"two data sets have one name: {', '.join(names)}: run them apart, or rename a folder")
    for name, root in zip(names, options.data, strict=True):
        for category in list_categories(root) or [None]:
            if options.categories is not None and category not in options.categories:
                continue
            samples = read_dataset(root, category=category)
            images = fingerprint(samples, root)
            for method in options.methods:
                for seed in options.seeds:
                    recipe, *own = [PEERS_RECIPE] if method in PEERS else method.split()
                    config = recipes.get(recipe).with_settings([*options.settings, *own]).replace(seed=seed)
                    identity = {"settings": config.to_json(), "images": images}
                    if method in PEERS:
                        identity |= {"coreset": options.coreset, "epochs": options.epochs}
                    folder = options.out / "cells" / name / (category or "all") / f"{'_'.join(method.split())}-{seed}"
                    yield Cell(name, root, category, samples, method, config, folder, identity)


def _kept(cell: Cell) -> dict[str, Any] | None:
    """The numbers of a finished cell; what is left of one with another identity is removed."""
    mark, record = cell.folder / "identity.json", cell.folder / "cell.json"
    if not mark.is_file() or json.loads(mark.read_text(encoding="utf-8")) != cell.identity:
        shutil.rmtree(cell.folder, ignore_errors=True)
        cell.folder.mkdir(parents=True)
        write_json(mark, cell.identity)
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None


def _compute(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    detector = (_peer if cell.method in PEERS else _own)(cell, options)
    numbers = measured(detector, evaluate(detector, cell.samples))
    numbers = finite({**numbers, "seconds": time.perf_counter() - start, "revision": revision()})
    write_json(cell.folder / "cell.json", numbers)
    return numbers


def measured(detector: Detector, evaluation: Evaluation) -> dict[str, float]:
    """The numbers of `COLUMNS`, but for the seconds; NaN where one does not exist."""
    metrics = evaluation.metrics
    found = {
        "image_auroc": metrics.image.auroc,
        "worst_type": min((own.image.auroc for own in metrics.types.values()), default=math.nan),
        "pixel_ap": metrics.pixel.ap,
        "aupro": metrics.pixel.aupro_30,
    }
    for rate in RATES:
        try:
            calibration = detector.calibration.at_rate(rate)
        except CalibrationError:  # too few good images
            calibration = None
        for key, anomalous in (("found", True), ("alarms", False)):
            own = [s for s in evaluation.scored if s.sample.anomalous is anomalous]
            decided = [] if calibration is None else [calibration.decide(s.score, s.category) for s in own]
            found[f"{key}_{round(100 * rate):02d}"] = float(np.mean(decided)) if decided else math.nan
    good, bad = ([s.score for s in evaluation.scored if s.sample.anomalous is kind] for kind in (False, True))
    limit = np.quantile(good, 0.95, method="higher") if good else math.nan
    found["found_true_05"] = float(np.mean(np.array(bad) > limit)) if good and bad else math.nan
    return found


def _own(cell: Cell, options: argparse.Namespace) -> Detector:
    """Train a recipe, going on where it was interrupted."""
    run = cell.folder / "run"
    if not (run / "model.safetensors").is_file():
        interrupted = (cell.folder / ".run.training" / "checkpoint.pt").is_file()
        train(cell.root, run, cell.config, category=cell.category, device=options.device,
              interrupted="resume" if interrupted else "discard")  # fmt: skip
    return load(run, backend="torch", device=options.device)


def _peer(cell: Cell, options: argparse.Namespace) -> Detector:
    """Hand images and expert to the other interpreter; the detector gives the maps that came back."""
    if options.peers_python is None:
        raise PeerError("no --peers-python was given: name a Python that has anomalib")
    job, config = cell.folder / "job", cell.config
    shutil.rmtree(job, ignore_errors=True)
    job.mkdir()
    material = gather(cell.root, config, "auto", cell.category, False, [])
    held_out = [path for path, _ in material.held_out]
    judged = [*held_out, *(s.path for s in cell.samples if s.split == "test")]
    expert = create_backbone(config.backbone, config.image_size, config.weights)
    body: Any = expert.body
    save_file({k: v.contiguous() for k, v in body.state_dict().items()}, job / "expert.safetensors")
    np.save(job / "fit.npy", load_all(material.paths, config.image_size).numpy())
    np.save(job / "judge.npy", load_all(judged, config.image_size).numpy())
    document = {
        "method": cell.method, "seed": config.seed, "backbone": config.backbone, "mean": expert.mean,
        "std": expert.std, "levels": list(body.feature_info.out_indices), "device": options.device,
        "coreset": options.coreset, "epochs": options.epochs,
    }  # fmt: skip
    write_json(job / "job.json", document)
    scores = _run_child(options.peers_python, job)["scores"]
    files = [job / "maps" / f"{i:05d}.npy" for i in range(len(judged))]
    maxima = [float(np.load(file).max()) for file in files[: len(held_out)]]
    unit = material.record.units[material.categories[0]]
    counted = [i if unit == "image" else record.group for i, record in enumerate(material.record.held_out)]
    good = GoodScores(scores[: len(held_out)], maxima, counted, unit)
    calibration = Calibration.fit({"": good}, config.false_alarm_rate, method="held-out")
    engine = Replay({content(read_image(p)): pair for p, *pair in zip(judged, files, scores, strict=True)})
    return Detector(engine, calibration)


def _run_child(python: Path, job: Path) -> dict[str, Any]:
    words = [str(python), str(Path(__file__).with_name("peers_accuracy.py")), str(job)]
    try:
        subprocess.run(words, check=True, text=True, stdout=sys.stderr, stderr=subprocess.PIPE)
        done: dict[str, Any] = json.loads((job / "done.json").read_text(encoding="utf-8"))
        return done
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
        raise PeerError(lines[-1]) from error
    except OSError as error:
        raise PeerError(f"{python} cannot be run or gave nothing back ({error}): check --peers-python") from error


def _rows(found: dict[tuple[str, str], list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """A row for each data set or category and each method; of several categories also the mean of their rows."""
    rows = [
        {"data": name, "method": method, "seeds": len(cells), "mean": _over(statistics.fmean, cells, 1),
         "std": _over(statistics.stdev, cells, 2)}
        for (name, method), cells in found.items()
    ]  # fmt: skip
    yield from rows
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if "/" in row["data"]:
            groups.setdefault((row["data"].partition("/")[0], row["method"]), []).append(row)
    for (data, method), own in groups.items():
        mean = _over(statistics.fmean, [row["mean"] for row in own], 1)
        yield {"data": f"{data}, mean of {len(own)}", "method": method, "seeds": own[0]["seeds"], "mean": mean,
               "std": _over(statistics.stdev, [], 1)}  # fmt: skip


def _over(function: Any, cells: Sequence[dict[str, Any]], least: int) -> dict[str, float | None]:
    values = {key: [cell[key] for cell in cells if cell[key] is not None] for key in COLUMNS}
    return {key: function(own) if len(own) >= least else None for key, own in values.items()}


def _lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    width = max((len(f"{row['data']}  {row['method']}") for row in rows), default=0)
    yield " " * width + "".join(f"{title:>14}" for title in COLUMNS.values())
    for row in rows:
        label = f"{row['data']}  {row['method']}"
        yield f"{label:{width}}" + "".join(f"{_shown(row['mean'][k], row['std'][k], k):>14}" for k in COLUMNS)


def _shown(mean: float | None, std: float | None = None, key: str = "") -> str:
    if mean is None:
        return "-"
    digits = 0 if key == "seconds" else 3
    return f"{mean:.{digits}f}" + ("" if std is None else f" ±{std:.{digits}f}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CdoError as error:
        sys.exit(f"error: {error}")
    except (KeyboardInterrupt, Interrupted):
        sys.exit("interrupted: the same command goes on")
