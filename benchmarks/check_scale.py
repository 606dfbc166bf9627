"""Time `cdo_ad.audit.check` on many images: 10,000 in under two minutes on two cores is the aim.

    python benchmarks/check_scale.py [--count 10000] [--side 512] [--folder FOLDER]

Draws a data set once (JPEG, noise on a smooth pattern, one in a hundred an almost equal copy) and checks it.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from cdo_ad.audit.check import check


def draw(folder: Path, count: int, side: int) -> None:
    """Nine tenths good to train on, the rest good to test with; every hundredth repeats its neighbour, brighter."""
    for part in ("train", "test"):
        (folder / part / "good").mkdir(parents=True, exist_ok=True)

    def one(i: int) -> None:
        rng = np.random.default_rng(i - 1 if i % 100 == 10 else i)
        coarse = Image.fromarray(rng.integers(60, 160, (12, 12, 3), dtype=np.uint8)).resize((side, side))
        image = np.asarray(coarse).astype(np.float32) + rng.normal(0, 4, (side, side, 1))
        image = image * (1.2 if i % 100 == 10 else 1.0)
        part = "train" if i % 10 else "test"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / part / "good" / f"{i:05d}.jpg")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(count)))


def main(words: Sequence[str] | None = None) -> None:
    """Draw where nothing is drawn yet, check, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args(words)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="check_scale_"))
    if not (folder / "train").is_dir():
        draw(folder, options.count, options.side)
    start, cpu = time.perf_counter(), time.process_time()
    report = check(folder)
    seconds, used = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{options.count} images of {options.side} x {options.side}: {seconds:.1f} s wall, {used:.1f} s CPU, "
        f"peak {peak:.2f} GiB; {len(report.near)} near copies"
    )


if __name__ == "__main__":
    main()
