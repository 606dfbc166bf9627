"""Judge many images with `cdo-ad score`: overhead against the plain loop, and memory while the number of images grows.

    python benchmarks/score_scale.py [--run RUN] [--images 2000] [--side 256] [--many 100000] [--folder FOLDER]

The plain loop is `Detector.predict_stream` over decoded files in one process that may use all cores. `score` runs a
process for each core. Start-up (Ray, model) is measured apart, by a call that judges a few images. Both read the same
JPEG files and use the exported model of the run where there is one. Without --run a small detector is trained first.

Memory is that of the largest process (resident, sampled each second) while `--many` tiny images are judged; it is
printed at a tenth and at the end, and should be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cdo_ad import recipes
from cdo_ad.data.reading import read_ahead
from cdo_ad.inference.detector import Item, load
from cdo_ad.provenance import processors
from cdo_ad.scale.scoring import ScoreSummary, score


def draw(folder: Path, count: int, side: int) -> Path:
    """JPEG images of noise on a smooth pattern, 1000 in a folder; what is there stays."""
    if folder.is_dir():
        return folder

    def one(i: int) -> None:
        rng = np.random.default_rng(i)
        coarse = Image.fromarray(rng.integers(60, 160, (8, 8, 3), dtype=np.uint8)).resize((side, side))
        noise = rng.normal(0, 4, (side, side, 1))
        place = folder / f"{i // 1000:05d}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(place / f"{i:07d}.jpg")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(count)))
    return folder


def small_run(folder: Path) -> Path:
    """The default recipe on 40 drawn images, exported to OpenVINO."""
    from cdo_ad.deploy.export import export
    from cdo_ad.training.train import train

    if not (folder / "run").is_dir():
        draw(folder / "good", 40, 256)
        config = recipes.get("lite0").replace(image_height=256, image_width=256, keep_groups_together=False)
        train(folder / "good" / "00000", folder / "run", config, device="cpu")
        export(folder / "run", to="openvino")
    return folder / "run"


def plain(run: Path, images: Path) -> dict[str, float]:
    """Seconds to load, images a second and CPU milliseconds of an image, of one process."""
    start = time.perf_counter()
    detector = load(run, device="cpu", mode="throughput")
    loaded = time.perf_counter() - start
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    files = sorted(images.rglob("*.jpg"))
    items = (Item(str(path), image) for path, image in read_ahead(files, processors()))
    for _ in detector.predict_stream(items):
        count += 1
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"load_seconds": loaded, "images_per_second": count / seconds, "cpu_ms_per_image": 1000 * cpu / count}


class Process(NamedTuple):
    """One process of ours, now."""

    kind: str
    resident: int
    """Bytes."""
    cpu: float
    """Seconds since it started."""


def processes() -> list[Process]:
    """The driver, which is this process, and all below it: those that judge, and the rest of Ray."""
    stats: dict[int, list[str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            stats[int(folder.name)] = (folder / "stat").read_text().rpartition(")")[2].split()
    found = []
    for number, fields in stats.items():
        at = number
        while at in stats and at != os.getpid():
            at = int(stats[at][1])
        if at != os.getpid():
            continue
        with suppress(OSError):
            title = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")[0].decode()
            kind = "driver" if number == os.getpid() else "judge" if "MapWorker" in title else "rest of Ray"
            cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            found.append(Process(kind, int(fields[21]) * os.sysconf("SC_PAGE_SIZE"), cpu))
    return found


def cpu_seconds() -> dict[str, float]:
    """Of this process and all below it that live, by kind."""
    found: dict[str, float] = {}
    for process in processes():
        found[process.kind] = found.get(process.kind, 0) + process.cpu
    return found


class Memory:
    """Resident bytes of the largest process of each kind, sampled."""

    def __init__(self) -> None:
        self.largest: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(1):
            for process in processes():
                self.largest[process.kind] = max(process.resident, self.largest.get(process.kind, 0))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and what was returned."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def overhead(run: Path, images: Path, folder: Path) -> dict[str, Any]:
    """The plain loop, `score` after its start-up, and the plain loop again: other programs may disturb one of them."""
    few = draw(folder / "few", 4, 256)
    before = plain(run, images)
    count = len(list(images.rglob("*.jpg")))
    marks: list[tuple[int, float, dict[str, float]]] = []

    def note(so_far: ScoreSummary) -> None:
        # from when all processes are at work to when the first may have nothing left to do; looking costs CPU too
        if len(marks) < 2 and so_far.images >= count * (0.2, 0.8)[len(marks)]:
            marks.append((so_far.images, time.perf_counter(), cpu_seconds()))

    with tempfile.TemporaryDirectory() as out:
        start, _ = timed(lambda: score(run, few, out=Path(out) / "few", device="cpu"))
        whole, done = timed(lambda: score(run, images, out=Path(out) / "all", device="cpu", tell=note))
    assert done.images == count and not done.failed, done
    after = plain(run, images)
    (first, begin, cpu), (last, end, more) = marks
    judged = last - first
    each = {f"cpu_ms_{kind}": 1000 * (more[kind] - cpu[kind]) / judged for kind in more}
    ours = {
        "start_seconds": start, "whole_seconds": whole, "images_per_second": judged / (end - begin),
        **each, "cpu_ms_per_image": sum(each.values()),
    }  # fmt: skip
    mean = {key: (before[key] + after[key]) / 2 for key in before}
    return {
        "images": count, "plain": [before, after], "score": ours,
        "overhead_wall": mean["images_per_second"] / ours["images_per_second"] - 1,
        "overhead_cpu": ours["cpu_ms_per_image"] / mean["cpu_ms_per_image"] - 1,
    }  # fmt: skip


def memory(run: Path, images: Path, folder: Path) -> dict[str, Any]:
    """The largest resident memory, in MiB, when a tenth is judged and at the end."""
    at_a_tenth: dict[str, int] = {}
    count = len(list(images.rglob("*.jpg")))
    with tempfile.TemporaryDirectory() as out, Memory() as watched:

        def note(so_far: ScoreSummary) -> None:
            if not at_a_tenth and so_far.images >= count / 10:
                at_a_tenth.update(watched.largest)

        seconds, done = timed(lambda: score(run, images, out=Path(out) / "all", device="cpu", tell=note))
        parts = list((Path(out) / "all").glob("*.parquet"))
        size = sum(part.stat().st_size for part in parts)
        again, known = timed(lambda: score(run, images, out=Path(out) / "all", device="cpu"))
        assert known.images == 0 and known.known_images == count
    assert done.images == count, done
    return {
        "images": count, "seconds": seconds, "parts": len(parts), "bytes_per_row": size / count,
        "nothing_to_do_seconds": again,
        "mib_at_a_tenth": {kind: round(value / 2**20) for kind, value in at_a_tenth.items()},
        "mib_at_the_end": {kind: round(value / 2**20) for kind, value in watched.largest.items()},
    }  # fmt: skip


def main() -> None:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=None)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--many-run", type=Path, default=None, help="a quick run for the tiny images")
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="score_scale_"))
    run = options.run or small_run(folder)
    found: dict[str, Any] = {"processors": processors()}
    if options.images:
        images = draw(folder / f"images_{options.images}_{options.side}", options.images, options.side)
        found["overhead"] = overhead(run, images, folder)
        print(json.dumps(found, indent=2), flush=True)
    if options.many:
        tiny = draw(folder / f"many_{options.many}", options.many, 48)
        found["memory"] = memory(options.many_run or run, tiny, folder)
        print(json.dumps(found, indent=2), flush=True)


if __name__ == "__main__":
    main()
