"""Groups of near copies: images of one part, told from images of other parts that look alike.

A *copy* shows the same part again: another exposure, a small shift or turn, other compression, a rotated or mirrored
twin. Parts of one product look alike without being copies, so likeness proves nothing. What a copy shares and another
part does not is fine structure: grain, scratches, dirt. The method looks for that, in five steps.

1. **Prepare.** Each image is reduced to at most 128 pixels (all by one factor), made blind to exposure (logarithm) and
   to local contrast, and whitened by the mean spectrum of all images. Lines and periods that all images have in common
   then count little, and the mean of all images (a fixed background, dirt on the lens) is subtracted.
2. **Propose.** Two descriptors, whitened over the set, name each image's likeliest copies: the amplitude spectrum,
   blind to shifts, and the spectrum over the angle about the part's centre, blind to turns and mirroring.
3. **Register** each proposed pair: shift, any turn, mirrored or not, then an affine refinement.
4. **Verify.** The correlation of the pair after what similar images share has been taken away. The share is measured:
   the mean of a few images that look alike and are unlikely to be copies, registered as the pair is; the correlation is
   partial, given this mean. Alike parts fall to about 0.3, copies stay above 0.8.
5. **Join** verified pairs, the surest first. Two groups join only when most of a few pairs across them are verified as
   well, and never beyond a cap. So chains of alike images cannot swallow a data set.

Memory is some 50 kB an image; nothing is random but for a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdo_ad.data.copies.canvas import CANVAS, IntArray
from cdo_ad.data.copies.propose import neighbours
from cdo_ad.data.copies.register import Comparison
from cdo_ad.data.decode import decode_reduced, read_bytes

__all__ = ["Grouping", "group_copies", "join_pairs", "largest_group"]

SIDE = 112
"""Pixels: the median longer side of the reduced images."""
WITNESSES = 3
"""Pairs across two groups that are looked at before they join."""
LARGEST_SHARE = 0.2
"""Of all images, the most that one group may hold; but see `largest_group`."""
LOOK = 256
"""Pixels: a JPEG is decoded at a fraction of its size, never below this."""


@dataclass(frozen=True)
class Grouping:
    """Which images show the same part."""

    groups: IntArray
    """(n,) the group of each image, numbered from 0 in the order of the first images."""
    copies: tuple[tuple[int, int, float], ...] = field(default=(), repr=False)
    """Verified pairs i < j and their partial correlation, the surest first."""
    refused: int = 0
    """Verified pairs that were not joined: the group would be too large, or other pairs spoke against it."""

    @property
    def sizes(self) -> IntArray:
        """The number of images of each group."""
        return np.bincount(self.groups).astype(np.int64)

    @property
    def sentence(self) -> str:
        """What was found, in plain English."""
        n, sizes = len(self.groups), self.sizes
        if n < 2 or sizes.max() == 1:
            return f"no near copies among {n} images"
        many = int(sizes[sizes > 1].sum())
        text = (
            f"{many} of {n} images have near copies (the same part again); they form {len(sizes)} groups, "
            f"the largest of {sizes.max()} images"
        )
        return text + ("; some copies could not be kept together" if self.refused > 0.02 * len(self.copies) else "")


def largest_group(n: int) -> int:
    """The most images that one group may hold: a fifth of all, but three at least."""
    return max(3, int(LARGEST_SHARE * n))


def group_copies(paths: Sequence[Path], advance: Callable[[], None] = lambda: None, seed: int = 0) -> Grouping:
    """Find near copies and group them.

    Args:
        paths: image files.
        advance: called once for each image that has been compared.
        seed: of the choice of witnesses.

    Returns:
        The group of each image. Images without copies have a group of their own.

    Raises:
        ImageError: a file that cannot be read.
    """
    n = len(paths)
    if n < 2:
        return Grouping(np.arange(n))
    reduced = _reduced(paths)
    kinds = _kinds(reduced)
    pairs = {(kind, i): 1.0 for i, kind in enumerate(kinds) if kind != i}
    comparison = Comparison(reduced)
    proposals, references = neighbours(comparison)
    for i in range(n):
        for j in proposals[i]:
            if (i, j) not in pairs:
                pairs[i, j] = comparison.likeness(i, j, references[i])
        comparison.forget()
        advance()

    def look(i: int, j: int) -> float:
        i, j = min(i, j), max(i, j)
        if kinds[i] == kinds[j]:
            return 1.0
        if (i, j) not in pairs:
            pairs[i, j] = comparison.likeness(i, j, references[i])
            comparison.forget()
        return pairs[i, j]

    surest = sorted(((i, j, v) for (i, j), v in pairs.items() if v > 0), key=lambda pair: -pair[2])
    groups, refused = join_pairs(n, surest, look, largest_group(n), np.random.default_rng(seed))
    found = sorted(((i, j, round(v, 3)) for (i, j), v in pairs.items() if v > 0), key=lambda pair: -pair[2])
    return Grouping(groups, tuple(found), refused)


def _kinds(reduced: Sequence[npt.NDArray[np.uint8]]) -> list[int]:
    """The first image that equals each one: equal images are copies, no question of likeness."""
    first: dict[tuple[tuple[int, ...], bytes], int] = {}
    return [first.setdefault((image.shape, image.tobytes()), i) for i, image in enumerate(reduced)]


def _reduced(paths: Sequence[Path]) -> list[npt.NDArray[np.uint8]]:
    """Gray images, all reduced by one factor; those that would not fit the canvas by more."""
    looked = [_gray(path) for path in paths]
    factor = SIDE / float(np.median([max(size) for _, size in looked]))
    reduced = []
    for gray, (height, width) in looked:
        own = min(factor, CANVAS / max(width, height))
        target = (max(8, round(width * own)), max(8, round(height * own)))
        reduced.append(np.asarray(gray.resize(target, Image.Resampling.BILINEAR, reducing_gap=3.0)))
    return reduced


def _gray(path: Path) -> tuple[Image.Image, tuple[int, int]]:
    """A small gray image of a file, and (H, W) of the file's own."""
    image, size = decode_reduced(read_bytes(path), str(path), LOOK)
    gray = Image.fromarray(image).convert("L")
    return gray.reduce(max(1, min(gray.size) // LOOK)), size


def join_pairs(
    n: int,
    surest: Sequence[tuple[int, int, float]],
    look: Callable[[int, int], float],
    largest: int,
    random: np.random.Generator,
) -> tuple[IntArray, int]:
    """Groups of verified pairs, see the module.

    Args:
        n: images.
        surest: verified pairs and how alike they are, the surest first.
        look: how alike a pair is, 0 for no copies.
        largest: the most images that a group may hold.
        random: chooses the witnesses.

    Returns:
        (n,) the group of each image, and how many pairs were refused.
    """
    group = list(range(n))
    members: dict[int, list[int]] = {i: [i] for i in range(n)}
    refused = 0
    for i, j, _ in surest:
        a, b = group[i], group[j]
        if a == b:
            continue
        if len(members[a]) + len(members[b]) > largest or not _agree(members[a], members[b], (i, j), look, random):
            refused += 1
            continue
        a, b = (a, b) if len(members[a]) >= len(members[b]) else (b, a)
        for k in members[b]:
            group[k] = a
        members[a] += members.pop(b)
    _, first, numbers = np.unique(group, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers].astype(np.int64), refused


def _agree(
    a: Sequence[int],
    b: Sequence[int],
    known: tuple[int, int],
    look: Callable[[int, int], float],
    random: np.random.Generator,
) -> bool:
    """True where at least half of a few other pairs across two groups are copies too, or there is no other pair."""
    across = [(i, j) for i in a for j in b if (i, j) not in (known, known[::-1])]
    if len(across) > WITNESSES:
        across = [across[k] for k in random.choice(len(across), WITNESSES, replace=False)]
    return sum(look(i, j) > 0 for i, j in across) >= len(across) / 2
