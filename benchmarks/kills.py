"""Kill a training, a calibration, an adaptation or an export at random moments; the last good run always loads.

    python benchmarks/kills.py --kills 200

Each turn copies a small run, starts one command on it in a process of its own, and kills that with SIGKILL after a
random part of its usual time. Then the run must load and be the old one or the new one, the user's files must be there,
the same command must bring what it brings undisturbed (a training with --resume where a checkpoint was kept), and
nothing of the killed one may lie about. Prints how many turns of each command hit it while it ran; ends with 1 at the
first fault.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cdo_ad
from cdo_ad.bundle import read_bundle
from cdo_ad.config import Config
from cdo_ad.demo.products import make_dataset

CONFIG = Config(
    backbone="resnet18",
    weights="none",
    image_height=64,
    image_width=64,
    epochs=3,
    batch_size=8,
    false_alarm_rate=0.2,
    held_out_share=0.4,
)
RATE = 0.25
EXPORT = "export/model.xml"


def train(run: Path, data: Path) -> None:
    """A training with another seed into the folder of the run."""
    from cdo_ad.training.train import train as start

    checkpoint = run.parent / f".{run.name}.training" / "checkpoint.pt"
    start(
        data, run, CONFIG.replace(seed=2), device="cpu", workers=0,
        interrupted="resume" if checkpoint.is_file() else "discard",
    )  # fmt: skip


def calibrate(run: Path, _: Path) -> None:
    """Another rate."""
    cdo_ad.calibrate(run, false_alarm_rate=RATE)


def adapt(run: Path, data: Path) -> None:
    """Corrections, in place."""
    cdo_ad.adapt(run, run, good=data / "test" / "good", epochs=0, device="cpu")


def export(run: Path, _: Path) -> None:
    """An OpenVINO file."""
    cdo_ad.export(run, "openvino")


VERBS: dict[str, Callable[[Path, Path], None]] = {
    "train": train, "calibrate": calibrate, "adapt": adapt, "export": export,
}  # fmt: skip


def state(run: Path) -> str:
    """What a run is, in one word: its weights, its rate, whether its export is there and whole."""
    bundle = read_bundle(run)
    bundle.weights()
    exported = ""
    if (run / EXPORT).exists():
        cdo_ad.load(run / EXPORT, device="cpu")
        exported = " exported"
    return f"{bundle.weights_sha256[:12]} {bundle.calibration.false_alarm_rate}{exported}"


def main() -> int:
    """Parse, kill, check."""
    parser = argparse.ArgumentParser(description="The last good run loads after a kill at any moment.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS))
    options = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["cdo_ad.training.train", "cdo_ad.training.adapt", "cdo_ad.deploy.export", "openvino"]
    )
    draw, hits = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = make_dataset(root / "data", "plate", train=16, test_good=3, per_type=1, size=64)
        cdo_ad.train(data, root / "first" / "run", CONFIG, device="cpu", workers=0)
        (root / "first" / "run" / "notes.txt").write_text("mine")
        usual: dict[str, float] = {}
        after: dict[str, str] = {}
        for verb in options.verbs:  # undisturbed, twice: the first one warms caches
            for turn in range(2):
                run = _copy(root, f"{verb}{turn}")
                start = time.perf_counter()
                process = context.Process(target=VERBS[verb], args=(run, data))
                process.start()
                process.join()
                usual[verb], after[verb] = time.perf_counter() - start, state(run)
            shutil.rmtree(root / f"{verb}0")
        before = state(root / "first" / "run")
        for number in range(options.kills):
            verb = options.verbs[number % len(options.verbs)]
            run = _copy(root, "turn")
            process = context.Process(target=VERBS[verb], args=(run, data))
            process.start()
            time.sleep(draw.uniform(0, usual[verb]))
            hits[verb] += process.is_alive()
            process.kill()
            process.join()
            found = state(run)
            if found not in (before, after[verb]):
                return _fault(f"turn {number}, {verb}: the run is neither the old nor the new one: {found}")
            VERBS[verb](run, data)
            if state(run) != after[verb]:
                return _fault(f"turn {number}, {verb}: again it gave {state(run)}, undisturbed {after[verb]}")
            left = _names(root / "turn") ^ _names(root / f"{verb}1")
            if left or (run / "notes.txt").read_text() != "mine":
                return _fault(f"turn {number}, {verb}: files that differ from those undisturbed: {sorted(left)}")
            shutil.rmtree(root / "turn")
    for verb in options.verbs:
        print(f"{verb}: killed {hits[verb]} times while it ran ({usual[verb]:.1f} s undisturbed); every run loads")
    return 0


def _copy(root: Path, name: str) -> Path:
    shutil.copytree(root / "first", root / name)
    return root / name / "run"


def _names(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if ".tfevents." not in file.name}


def _fault(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
