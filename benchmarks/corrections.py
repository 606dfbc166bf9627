r"""What an operator's corrections change: labelled defects and images called anomalous by mistake, before and after.

    cdo-ad train DATA --out RUN
    python benchmarks/corrections.py RUN DATA --labelled 10 5 1 --draws 2 --types-labelled blowhole break --marked 20

Each case makes a run with `cdo-ad adapt RUN --epochs N` (0: the networks stay) and judges both runs on the same test
images, none of which the case has learned from:

- `--labelled K`: K defects drawn from the test folders, as many of each type as possible. Held out by image, all
  other images judge; held out by part, those defects of which a near copy (another exposure of the same part) was
  labelled do not judge either.
- `--types-labelled`: `--of-each` defects of each of these types are labelled, and the figures are told by type, so that
  the others show what labelling does to types that nobody has seen. Held out by part.
- `--marked N`: false alarms. Every test image gets a printed number that no good part had before; N good ones (whole
  groups of near copies) are given back as good. All others judge, with the mark and without it.

The table is printed and kept in OUT/corrections.json, the runs in OUT/runs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cdo_ad.cli.options import say
from cdo_ad.data import read_dataset, read_image, read_mask
from cdo_ad.data.split import group_images
from cdo_ad.errors import CdoError, ConfigError
from cdo_ad.evaluation.evaluate import evaluate
from cdo_ad.files import write_json
from cdo_ad.inference.detector import load
from cdo_ad.reporting.tables import METRICS_SHOWN, metrics_of
from cdo_ad.training.adapt import adapt
from cdo_ad.types import Sample

MARK_CONTRAST = 0.4
"""A printed number is this many times the image's mean."""
MARK_HEIGHT, MARK_JITTER = 1 / 6, 0.04
"""Of the image's height; how far from the same place it is printed, of the image's sides."""


@dataclass(frozen=True)
class Case:
    """Corrections, and the images that judge them; those of `also` are told apart."""

    name: str
    given: Path
    kind: str
    """`bad` or `good`: what `given` holds."""
    judged: dict[str, list[Sample]]
    by_type: bool = False


def main(words: Sequence[str] | None = None) -> int:
    """Make every case's run, judge it, print and write the table."""
    options = _options(words)
    test = [s for s in read_dataset(options.data, category=options.category) if s.split == "test"]
    rows = []
    before = load(options.run, backend="torch")
    for case in _cases(test, options):
        run = options.out / "runs" / case.name
        adapt(options.run, run, **{case.kind: case.given}, epochs=options.epochs)
        after = load(run, backend="torch")
        for judged, samples in case.judged.items():
            for state, detector in (("before", before), ("after", after)):
                measured = evaluate(detector, samples).metrics
                parts = {"": measured, **(measured.types if case.by_type else {})}
                for part, found in parts.items():
                    name = " ".join(filter(None, (case.name, judged, part)))
                    rows.append({"case": name, "state": state, "n": found.n.to_json(), "metrics": metrics_of(found)})
                    say(_line(rows[-1]))
    order = list(dict.fromkeys(row["case"] for row in rows))
    print("\n".join(_line(row) for row in sorted(rows, key=lambda row: order.index(row["case"]))))
    document = {"run": str(options.run), "epochs": options.epochs, "seed": options.seed, "rows": rows}
    write_json(options.out / "corrections.json", document)
    return 0


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path, help="the data set of the run, with masks")
    parser.add_argument("--category", help="of a data set with several products")
    parser.add_argument("--labelled", type=int, nargs="*", default=[], metavar="K")
    parser.add_argument("--draws", type=int, default=1, help="draws of each K")
    parser.add_argument("--types-labelled", nargs="*", default=[], metavar="TYPE")
    parser.add_argument("--of-each", type=int, default=5, help="defects of each of these types")
    parser.add_argument("--marked", type=int, default=0, metavar="N")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("corrections"))
    options = parser.parse_args(words)
    options.out = options.out.resolve()
    return options


def _cases(test: list[Sample], options: argparse.Namespace) -> Iterator[Case]:
    good, defects = [s for s in test if not s.anomalous], [s for s in test if s.anomalous]
    usable = [s for s in defects if s.mask_path is not None and read_mask(s.mask_path).any()]
    parts = _parts(test)
    for k in options.labelled:
        for draw in range(options.draws):
            labelled = drawn(usable, k, random.Random(f"{options.seed} {draw}"))
            name = f"labelled-{k}-draw-{draw}"
            alone = {s.path: i for i, s in enumerate(test)}
            judged = {"other images": others(test, labelled, alone), "other parts": others(test, labelled, parts)}
            yield Case(name, _labelled_folder(options.out / name, labelled), "bad", judged)
    if options.types_labelled:
        types = {s.defect_type for s in defects}
        if unknown := set(options.types_labelled) - types:
            raise ConfigError(f"no defect is called {', '.join(sorted(unknown))}: there are {', '.join(sorted(types))}")
        known = [s for s in usable if s.defect_type in options.types_labelled]
        labelled = drawn(known, options.of_each * len(options.types_labelled), random.Random(options.seed))
        folder = _labelled_folder(options.out / "types-labelled", labelled)
        yield Case("types-labelled", folder, "bad", {"": others(test, labelled, parts)}, by_type=True)
    if options.marked:
        yield _marked_case(test, good, parts, options)


def _parts(samples: Sequence[Sample]) -> dict[Path, int]:
    """The group of near copies of each image, as a training finds them."""
    paths = [s.path for s in samples]
    return dict(zip(paths, group_images(paths)[0].tolist(), strict=True))


def drawn(defects: Sequence[Sample], k: int, chance: random.Random) -> list[Sample]:
    """Draw k defects, as many of each type as possible."""
    order = sorted(defects, key=lambda s: str(s.path))
    chance.shuffle(order)
    types = sorted({s.defect_type for s in order})
    chance.shuffle(types)
    queues = {t: [s for s in order if s.defect_type == t] for t in types}
    turns = (queue[i] for i in range(len(order)) for queue in queues.values() if i < len(queue))
    chosen = [sample for sample, _ in zip(turns, range(k), strict=False)]
    if len(chosen) < k:
        raise ConfigError(f"{k} labelled defects were asked for, but only {len(chosen)} have a mask")
    return chosen


def others(test: Sequence[Sample], learned: Sequence[Sample], parts: dict[Path, int]) -> list[Sample]:
    """Test images of none of the learned ones' parts; good ones judge all, as they were not learned from."""
    gone, paths = {parts[s.path] for s in learned}, {s.path for s in learned}
    good_learned = any(not s.anomalous for s in learned)
    return [
        s for s in test if s.path not in paths and not ((s.anomalous or good_learned) and parts[s.path] in gone)
    ]  # fmt: skip


def _labelled_folder(folder: Path, samples: Sequence[Sample]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for s in samples:
        assert s.mask_path is not None  # only such are drawn
        stem = f"{s.defect_type}_{s.path.stem}"
        shutil.copy(s.path, folder / f"{stem}{s.path.suffix}")
        shutil.copy(s.mask_path, folder / f"{stem}_mask{s.mask_path.suffix}")
    return folder


def _marked_case(
    test: Sequence[Sample], good: Sequence[Sample], parts: dict[Path, int], options: argparse.Namespace
) -> Case:
    marked = {s.path: replace(s, path=print_number(s, options.out / "marked" / s.defect_type)) for s in test}
    order = sorted({parts[s.path] for s in good})
    random.Random(options.seed).shuffle(order)
    given: list[Sample] = []
    for group in order:
        members = [s for s in good if parts[s.path] == group]
        if len(given) + len(members) <= options.marked:
            given += members
    folder = options.out / "given-back"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for s in given:
        shutil.copy(marked[s.path].path, folder / marked[s.path].path.name)
    rest = others(test, given, parts)
    judged = {"with the mark": [marked[s.path] for s in rest], "without it": rest}
    return Case(f"marked-{len(given)}", folder, "good", judged)


def print_number(sample: Sample, folder: Path) -> Path:
    """The image with a number of three digits, written beside the others; always the same for the same image."""
    chance = random.Random(sample.path.name)
    image = read_image(sample.path)
    height, width = image.shape[:2]
    ink = Image.new("L", (width, height))
    x, y = (side * (0.5 + chance.uniform(-MARK_JITTER, MARK_JITTER)) for side in (width, height))
    font = ImageFont.load_default(max(8, height * MARK_HEIGHT))
    ImageDraw.Draw(ink).text((x, y), str(chance.randint(100, 999)), fill=255, font=font, anchor="mm")
    share = np.asarray(ink, dtype=np.float32)[..., None] / 255
    printed = (1 - share) * image + share * MARK_CONTRAST * image.mean()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{sample.path.stem}.png"
    Image.fromarray(printed.round().astype(np.uint8)).save(path)
    return path


def _line(row: dict[str, Any]) -> str:
    figures = "   ".join(
        f"{title} {row['metrics'][key]:.3f}" for key, title in METRICS_SHOWN.items() if key in row["metrics"]
    )
    return f"{row['case']:36} {row['state']:7} {row['n']['good']:4} good {row['n']['anomalous']:4} defects   {figures}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CdoError as error:
        sys.exit(f"error: {error}")
