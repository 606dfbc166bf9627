"""The rules about images that show the same: equal images, and near copies between training and test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cdo_ad.audit.findings import Finding
from cdo_ad.audit.statistics import pixels_digest
from cdo_ad.audit.subject import Subject
from cdo_ad.errors import ImageError, needs_extra
from cdo_ad.progress import progress_bar
from cdo_ad.types import GOOD

__all__ = ["Copies", "find_copies"]

Pair = tuple[Path, Path]


@dataclass(frozen=True, slots=True)
class Copies:
    """The images of a category that show the same."""

    group_of: Mapping[Path, int]
    """The group of near copies of each image."""
    sentence: str
    """What was found, in one line."""
    near: tuple[tuple[str, str, float], ...]
    """Near copies that are not equal, by name, and their likeness, 0..1; the surest first."""
    findings: tuple[Finding, ...]


def find_copies(subject: Subject) -> Copies:
    """Find equal images and near copies.

    Args:
        subject: the category.

    Raises:
        ImageError: an image that can no longer be read.
        MissingExtraError: if scipy is not installed.
    """
    with needs_extra("check", "finding near copies"):
        from cdo_ad.data.copies import group_copies
    paths = subject.paths
    with progress_bar() as bar:
        task = bar.add_task(f"comparing {subject.category or 'images'}", total=len(paths), note="")
        grouping = group_copies(paths, lambda: bar.update(task, advance=1))
    pairs = [(paths[i], paths[j], likeness) for i, j, likeness in grouping.copies]
    digests = _digests(subject, [(a, b) for a, b, _ in pairs])
    near = [(a, b, likeness) for a, b, likeness in pairs if digests.get(a, b"a") != digests.get(b, b"b")]
    return Copies(
        group_of=dict(zip(paths, grouping.groups.tolist(), strict=True)),
        sentence=grouping.sentence,
        near=tuple((subject.name(a), subject.name(b), likeness) for a, b, likeness in near),
        findings=(*_equal(subject, digests), *_near(subject, [(a, b) for a, b, _ in near])),
    )


def _digests(subject: Subject, pairs: Sequence[Pair]) -> dict[Path, bytes]:
    """A hash of all pixels of the images that may be equal: those of a pair, of one size. In the subject's order."""
    kinds = {path: subject.facts[path].kind for path in subject.paths}
    sizes = {path: (kind.height, kind.width) for path, kind in kinds.items()}
    candidates = {path for a, b in pairs if sizes[a] == sizes[b] for path in (a, b)}
    found = {}
    for path in subject.paths:
        if path in candidates:
            try:
                found[path] = pixels_digest(path)
            except ImageError:  # it was there a moment ago
                continue
    return found


def _equal(subject: Subject, digests: Mapping[Path, bytes]) -> Iterator[Finding]:
    conflict, across, within = [], [], []
    defect_of, part_of = subject.defect_of, subject.part_of
    groups: dict[bytes, list[Path]] = {}
    for path, digest in digests.items():
        groups.setdefault(digest, []).append(path)
    for a, b in (pair for group in groups.values() for pair in pairwise(group)):
        line = f"{subject.name(a)} = {subject.name(b)}"
        if (defect_of[a] == GOOD) != (defect_of[b] == GOOD):
            conflict.append(line)
        elif part_of[a] != part_of[b]:
            across.append(line)
        else:
            within.append(line)
    if conflict:
        text = f"{len(conflict)} pair(s) of equal images, one labelled good and one a defect: remove the wrong one"
        yield subject.finding("label-conflict", "error", text, conflict)
    if across:
        text = f"{len(across)} pair(s) of equal images, one to train on and one to test with: remove one of each"
        yield subject.finding("equal-across", "error", text, across)
    if within:
        text = f"{len(within)} pair(s) of equal images: remove one of each"
        yield subject.finding("equal-within", "warning", text, within)


def _near(subject: Subject, pairs: Sequence[Pair]) -> Iterator[Finding]:
    part_of = subject.part_of
    across = [(a, b) if part_of[a] == "train" else (b, a) for a, b in pairs if part_of[a] != part_of[b]]
    within = [(a, b) for a, b in pairs if part_of[a] == part_of[b]]
    if across:
        seen = len({b for _, b in across})
        of = sum(part == "test" for part in part_of.values())
        text = (
            f"{seen} of {of} test images show a part that is also trained on ({len(across)} pairs, such as the same "
            "part under another exposure): metrics of the test flatter the model; keep all images of a part on one side"
        )
        yield subject.finding("near-train-test", "warning", text, _lines(subject, across))
    if within:
        text = f"{len(within)} pairs of images to train on, or to test with, show the same part: it counts once"
        yield subject.finding("near-within", "note", text, _lines(subject, within))


def _lines(subject: Subject, pairs: Sequence[Pair]) -> Iterator[str]:
    return (f"{subject.name(a)} = {subject.name(b)}" for a, b in pairs)
