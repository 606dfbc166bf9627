"""Peak memory and time of large images in tiles, and what a seam costs.

    python benchmarks/large_images.py --height 8000 --width 12500

Trains on drawn surfaces of 1024 x 1024 pixels in tiles of 512, then judges one drawn surface of the size asked for in a
process of its own. Printed: peak memory of that process, seconds, and the largest difference between the joined map and
that of a tile whose middle lies on a seam, in units of the threshold.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import cdo_ad
from cdo_ad.inference.engines.tiled import TiledEngine
from cdo_ad.tiles import Box, cut, tile_boxes

TILE = 512


def surface(seed: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A brushed surface: noise that is long in one direction."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 9, (height, 1)).astype(np.float32)
    image = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, 500):  # in strips, or the noise would take more than the image
        part = rows[top : top + 500]
        noise = rng.normal(0, 6, (len(part), width)).astype(np.float32)
        image[top : top + 500] = (128 + part + noise).clip(0, 255).astype(np.uint8)[..., None]
    return image


def judge(run: Path, file: Path) -> None:
    """Judge one image and print what it took; in a process of its own."""
    detector = cdo_ad.load(run, device="cpu")
    start = time.perf_counter()
    image = cdo_ad.read_image(file)
    found = detector.predict(image)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # getrusage would tell the parent's peak as well
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    tiles = len(tile_boxes(image.shape[:2], TILE))
    print(f"{image.shape[0]} x {image.shape[1]}: {tiles} tiles, {seconds:.1f} s, peak {peak:.2f} GiB; {found.sentence}")


def seam(run: Path) -> float:
    """The largest difference on seams between the joined map and tiles that lie astride them, over the threshold."""
    detector = cdo_ad.load(run, device="cpu")
    engine = detector.engine
    assert isinstance(engine, TiledEngine)
    image, worst = surface(999, 1024, 1024), 0.0
    joined = engine.infer(image[None]).maps[0]
    scale = joined.shape[0] / image.shape[0]
    for left in {box.left for box in tile_boxes((1024, 1024), TILE)} - {0}:
        box = Box(256, left - TILE // 4, TILE, TILE)
        own = engine.engine.infer(cut(image, box)[None]).maps[0]
        rows = slice(round((box.top + 192) * scale), round((box.top + 320) * scale))
        columns = slice(round((box.left + 192) * scale), round((box.left + 320) * scale))
        middle = slice(round(192 * scale), round(192 * scale) + rows.stop - rows.start)
        worst = max(worst, float(np.abs(joined[rows, columns] - own[middle, middle]).max()))
    return worst / detector.calibration.of().pixel_threshold


def main() -> None:
    """Parse, train, measure."""
    parser = argparse.ArgumentParser(description="Memory and seams of large images in tiles.")
    parser.add_argument("--height", type=int, default=8000)
    parser.add_argument("--width", type=int, default=12500)
    parser.add_argument("--judge", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.judge:
        judge(*options.judge)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "data" / "good").mkdir(parents=True)
        for k in range(20):
            Image.fromarray(surface(k, 1024, 1024)).save(root / "data" / "good" / f"{k}.png")
        config = cdo_ad.recipes.lite0().replace(tile=TILE, keep_groups_together=False)
        cdo_ad.train(root / "data", root / "run", config, device="cpu")
        print(f"largest difference on a seam: {seam(root / 'run'):.3f} of the threshold")
        Image.fromarray(surface(100, options.height, options.width)).save(root / "large.png")
        subprocess.run([sys.executable, __file__, "--judge", str(root / "run"), str(root / "large.png")], check=True)


if __name__ == "__main__":
    main()
