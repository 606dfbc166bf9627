"""What a busy process beside it costs a training, with OpenMP's threads waiting actively and passively.

    python benchmarks/busy.py --rounds 3

One epoch of the paper's form (Lite0) on a drawn product, four ways in turns: alone and beside a process that computes
with as many threads as there are processors, each with `OMP_WAIT_POLICY` unset and PASSIVE (which `cdo-ad` sets).
Prints median seconds of each and the ratios to the quiet one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cdo_ad.demo.products import make_dataset

TRAIN = (
    "import sys, cdo_ad; cdo_ad.train(sys.argv[1], sys.argv[2], cdo_ad.recipes.get('paper_lite0').replace(epochs=1))"
)
BUSY = "import torch\na = torch.rand(1200, 1200)\nwhile True: a @ a"
WAITS = {"unset": None, "PASSIVE": "PASSIVE"}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description="A training beside a busy process.")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[tuple[str, bool], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = make_dataset(Path(folder) / "data", "plate", train=60)
        for number in range(options.rounds):
            for wait in WAITS:
                for busy in (False, True):
                    took = _train(data, Path(folder) / f"run{number}{wait}{busy}", WAITS[wait], busy)
                    seconds.setdefault((wait, busy), []).append(took)
    for wait in WAITS:
        quiet, beside = (statistics.median(seconds[wait, busy]) for busy in (False, True))
        print(
            f"OMP_WAIT_POLICY {wait}: alone {quiet:.1f} s, beside a busy process {beside:.1f} s: {beside / quiet:.2f} x"
        )


def _train(data: Path, out: Path, wait: str | None, busy: bool) -> float:
    """Seconds of one training in a process of its own."""
    own = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    env = own if wait is None else own | {"OMP_WAIT_POLICY": wait}
    other = subprocess.Popen([sys.executable, "-c", BUSY], env=own) if busy else None
    try:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-W", "ignore", "-c", TRAIN, str(data), str(out)], env=env, check=True)
        return time.perf_counter() - start
    finally:
        if other is not None:
            other.kill()
            other.wait()


if __name__ == "__main__":
    main()
