"""Images that show the same thing: equal pixels, and perceptual hashes that are unusually near each other.

Near duplicates are two images whose hashes (256 bits) differ in unusually few bits for two images of this data set.
The hash is nearly blind to exposure, contrast and size, so it finds the same part under another light.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdo_ad.data.decode import decode_reduced, read_bytes
from cdo_ad.errors import needs_extra
from cdo_ad.provenance import processors

__all__ = [
    "HASH_BITS",
    "LARGEST_DISTANCE",
    "LOOK",
    "equal_groups",
    "hash_images",
    "near_groups",
    "near_limit",
    "near_pairs",
    "perceptual_hash",
]

LOOK = 256
"""Pixels: the shorter side of the reduced images that are hashed is at least this, where the image's own is."""
HASH_SIDE = 16
HASH_BITS = HASH_SIDE * HASH_SIDE

LARGEST_DISTANCE = 76
"""Bits of 256: never call images near beyond this, 0.6 of the 128 in which unrelated images differ on average."""
DEVIATIONS, DEVIATIONS_A_DECADE = 4.0, 1.6
NORMAL_DECILE = 1.2816  # standard deviations from the median to the decile of a normal distribution
BLOCK = 1024
SAMPLE = 1000

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


def hash_images(paths: Sequence[Path], advance: Callable[[], None] = lambda: None) -> dict[Path, BoolArray]:
    """Decode images, in as many threads as there are processors, and hash them.

    Args:
        paths: the files.
        advance: called once for each image that is done.

    Returns:
        `perceptual_hash` by file.

    Raises:
        ImageError: an image that cannot be read.
        MissingExtraError: if `imagehash` is not installed.
    """
    found = {}
    with ThreadPoolExecutor(processors()) as pool:
        for path, bits in zip(paths, pool.map(_hash_file, paths), strict=True):
            advance()
            found[path] = bits
    return found


def _hash_file(path: Path) -> BoolArray:
    image, _ = decode_reduced(read_bytes(path), str(path), LOOK)
    return perceptual_hash(Image.fromarray(image).convert("L"))


def perceptual_hash(gray: Image.Image) -> BoolArray:
    """(256,) bits: the signs of the lowest DCT coefficients against their median.

    Args:
        gray: of `cdo_ad.data.decode.decode_reduced`, to at least `LOOK`; from another size the bits differ a little.

    Raises:
        MissingExtraError: if `imagehash` is not installed.
    """
    with needs_extra("train", "finding near duplicates"):
        import imagehash
    # the hash works at 64 x 64: a box reduction to some 256 first is far quicker on large images
    reduced = gray.reduce(max(1, min(gray.size) // LOOK))
    return np.asarray(imagehash.phash(reduced, hash_size=HASH_SIDE).hash, dtype=np.bool_).ravel()


def equal_groups(digests: Sequence[Hashable]) -> list[list[int]]:
    """Indices of equal digests, a list for each that occurs more than once, in order of the first."""
    groups: dict[Hashable, list[int]] = {}
    for index, digest in enumerate(digests):
        groups.setdefault(digest, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_limit(hashes: BoolArray) -> int:
    """The Hamming distance up to which two images of this data set count as near duplicates.

    Four standard deviations below the median distance between its images for up to 1000 of them, 1.6 more for ten
    times as many, since pairs are a hundred times as many: were distances normal, 16 pairs of 1000 unlike images
    would be that near by chance, and half a pair of 10,000. At most `LARGEST_DISTANCE`. The standard deviation is taken
    from the lower decile. Images of parts that lie in the same place are all alike, so what is unusually near depends
    on the data set. Negative where nothing can be told.

    Args:
        hashes: (N, 256) bool; at most 1000 of them, evenly spread, are compared.
    """
    some = hashes[:: max(1, len(hashes) // SAMPLE)]
    if len(some) < 2:
        return 0
    distances = _distances(some, some)[np.triu_indices(len(some), 1)]
    decile, median = np.quantile(distances, (0.1, 0.5))
    deviations = DEVIATIONS + DEVIATIONS_A_DECADE * max(0.0, math.log10(len(hashes) / SAMPLE))
    return min(LARGEST_DISTANCE, math.floor(float(median - deviations * (median - decile) / NORMAL_DECILE)))


def near_pairs(hashes: BoolArray, limit: int) -> list[tuple[int, int, int]]:
    """All pairs (i, j, distance) with i < j whose hashes differ in at most `limit` bits, nearest first.

    Exact, block by block as a matrix product of signs: 10,000 images take seconds and 8 MB a block.

    Args:
        hashes: (N, B) bool.
        limit: bits.
    """
    found: list[tuple[int, int, int]] = []
    for rows, columns, distances in _near_blocks(hashes, limit):
        found += zip(rows.tolist(), columns.tolist(), distances.tolist(), strict=True)
    return sorted(found, key=lambda pair: (pair[2], pair[0], pair[1]))


def near_groups(hashes: BoolArray, limit: int) -> IntArray:
    """Number the groups of images that are joined by near pairs, also through others between them.

    Args:
        hashes: (N, B) bool.
        limit: bits, see `near_limit`.

    Returns:
        (N,) the group of each image, from 0 in the order of the first images.

    Raises:
        MissingExtraError: if scipy is not installed.
    """
    with needs_extra("train", "grouping near duplicates"):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

    def components(a: IntArray, b: IntArray) -> IntArray:
        graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(len(hashes), len(hashes)))
        return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)

    joined = np.arange(len(hashes))
    for rows, columns, _ in _near_blocks(hashes, limit):  # pairs are never kept: there can be N^2 of them
        joined = components(np.concatenate((np.arange(len(hashes)), rows)), np.concatenate((joined, columns)))
        first = np.full(len(hashes), len(hashes))
        np.minimum.at(first, joined, np.arange(len(hashes)))
        joined = first[joined]
    return np.unique(joined, return_inverse=True)[1]


def _near_blocks(hashes: BoolArray, limit: int) -> Iterator[tuple[IntArray, IntArray, IntArray]]:
    """The near pairs i < j and their distances, a block of images against another at a time."""
    for start in range(0, len(hashes), BLOCK):
        for other in range(start, len(hashes), BLOCK):
            distances = _distances(hashes[start : start + BLOCK], hashes[other : other + BLOCK])
            rows, columns = np.nonzero(distances <= limit)
            keep = start + rows < other + columns
            rows, columns = rows[keep], columns[keep]
            if rows.size:
                yield start + rows, other + columns, distances[rows, columns]


def _distances(a: BoolArray, b: BoolArray) -> IntArray:
    """(N, M) Hamming distances of (N, B) and (M, B) bits: (B - <signs, signs>) / 2, exact in float32."""
    signs_a = np.where(a, np.float32(1), np.float32(-1))
    signs_b = np.where(b, np.float32(1), np.float32(-1))
    distances: IntArray = np.rint((a.shape[1] - signs_a @ signs_b.T) / 2).astype(np.int64)
    return distances
