"""Pixel metrics of many large maps: time, peak memory, and the difference from the exact values.

    python benchmarks/metrics_scale.py --maps 1000 --size 1024

Maps are made as the run goes, so memory is that of the metrics: a smooth field of positive values, rolled and scaled
differently for each image; half of the images have one to three blobs. Making them is timed by itself. The
difference is taken on the first `--check` images against a plain sort of all their pixels, and on the same images
with a budget so small that scores must be counted together.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator, Sequence

import cc3d
import numpy as np

from cdo_ad.evaluation.metrics import PixelMetrics


def images(count: int, size: int, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (map float32, mask bool); the same for the same seed."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.normal(size=(size, size)))
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    field = np.fft.irfft2(spectrum * np.exp(-2 * (np.pi * 6) ** 2 * (fy**2 + fx**2)), (size, size))  # sigma 6
    base = np.exp(0.5 * field / field.std()).astype(np.float32) * np.float32(0.2)
    y, x = np.ogrid[:size, :size]
    for index in range(count):
        scores = np.roll(base, tuple(rng.integers(0, size, 2)), axis=(0, 1)) * np.float32(rng.uniform(0.8, 1.25))
        mask = np.zeros((size, size), np.bool_)
        for _ in range(rng.integers(1, 4) if index % 2 else 0):
            cy, cx = rng.integers(0, size, 2)
            radius = size * rng.uniform(0.005, 0.08)
            mask |= (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        scores[mask] *= np.float32(rng.uniform(1.2, 3.0))
        yield scores, mask


def plain(maps: list[np.ndarray], masks: list[np.ndarray], limits: tuple[float, ...]) -> dict[str, float]:
    """Sort all pixels and follow every threshold: the exact values, in memory of about 60 bytes a pixel."""
    weights, regions = [], 0
    for mask in masks:
        labels = cc3d.connected_components(mask, connectivity=8)
        areas = np.bincount(labels.ravel())
        regions += areas.size - 1
        weights.append(np.where(labels > 0, 1.0 / areas[labels], 0.0).ravel())
    scores, truth = np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    tp, fp = np.cumsum(truth[order])[last], np.cumsum(~truth[order])[last]
    pro = np.append(0.0, np.cumsum(np.concatenate(weights)[order])[last] / regions)
    x, tpr = np.append(0.0, fp / fp[-1]), np.append(0.0, tp / tp[-1])
    result = {
        "auroc": float(np.trapezoid(tpr, x)),
        "ap": float(np.diff(tpr) @ (tp / (tp + fp))),
        "f1max": float((2 * tp / (tp + fp + tp[-1])).max()),
    }
    highest = np.append(np.diff(x) != 0, True)  # one point of the PRO curve for each false-positive rate
    x, pro = x[highest], pro[highest]
    for limit in limits:
        inside = x < limit
        ends = np.append(pro[inside], np.interp(limit, x, pro))
        result[f"aupro_{round(100 * limit):02d}"] = float(np.trapezoid(ends, np.append(x[inside], limit)) / limit)
    return result


def run(count: int, size: int, memory: int) -> tuple[PixelMetrics, float, float]:
    """Fill the metrics: they, seconds to make the maps, seconds in the metrics."""
    metrics, making, adding = PixelMetrics(memory), 0.0, 0.0
    source = images(count, size)
    for _ in range(count):
        start = time.perf_counter()
        scores, mask = next(source)
        middle = time.perf_counter()
        metrics.update(scores, mask)
        making, adding = making + middle - start, adding + time.perf_counter() - middle
    return metrics, making, adding


def main(words: Sequence[str] | None = None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--memory", type=int, default=2 << 30, help="bytes for the counts")
    parser.add_argument("--check", type=int, default=20, help="images of the comparison with a plain sort")
    args = parser.parse_args(words)

    metrics, making, adding = run(args.maps, args.size, args.memory)
    start = time.perf_counter()
    values = metrics.compute()
    computing = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{args.maps} maps of {args.size}x{args.size}: update {adding:.1f} s, compute {computing:.1f} s,")
    print(f"together {adding + computing:.1f} s; making the maps {making:.1f} s; peak memory {peak:.2f} GiB")
    print(f"exact: {metrics.exact}; largest error bound {max(metrics.error_bound().values()):.1e}")
    print({name: round(value, 6) for name, value in values.model_dump().items()})

    if args.check:
        subset = list(images(args.check, args.size))
        exact = plain([m for m, _ in subset], [k for _, k in subset], (0.3, 0.05))
        for name, memory in (("this budget", args.memory), ("4 MiB", 4 << 20)):
            checked = run(args.check, args.size, memory)[0]
            worst = max(abs(value - exact[key]) for key, value in checked.compute().model_dump().items())
            print(f"first {args.check} maps, {name}: exact {checked.exact}, largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
