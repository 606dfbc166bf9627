"""The rules about the files of a data set as such: unreadable ones, what has no partner, what a reader passed over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cdo_ad.audit.findings import Finding, Level
from cdo_ad.audit.listing import LenientListing
from cdo_ad.audit.statistics import Gathered
from cdo_ad.audit.subject import Subject, images
from cdo_ad.data.readers.notices import Notice

__all__ = ["noticed", "partners", "unreadable"]

LEVEL_OF: dict[str, Level] = {"passed-over": "warning"}
"""Of a notice; the others are notes."""


def unreadable(subject: Subject, gathered: Gathered) -> Iterator[Finding]:
    """Files that cannot be decoded, with the decoder's own words."""
    if files := gathered.unreadable:
        text = f"{images(len(files))} cannot be read; the first: {next(iter(files.values()))}"
        yield subject.finding("unreadable", "error", text, files)
    if files := gathered.unreadable_masks:
        text = f"{len(files)} mask(s) cannot be read; the first: {next(iter(files.values()))}"
        yield subject.finding("unreadable-mask", "error", text, files)


def noticed(subject: Subject, notices: Sequence[Notice]) -> Iterator[Finding]:
    """What a reader passed over or interpreted."""
    for notice in notices:
        yield subject.finding(notice.kind, LEVEL_OF.get(notice.kind, "note"), notice.text, notice.files)


def partners(subject: Subject, listing: LenientListing) -> Iterator[Finding]:
    """What a data set that its reader refuses lacks."""
    if files := listing.orphan_masks:
        text = f"{len(files)} mask(s) without an image: add it or remove the mask"
        yield subject.finding("orphan-mask", "error", text, files)
    if files := listing.orphan_images:
        text = (
            f"{images(len(files))} of a defect without a mask where others of its type have one: "
            "add it, or remove all masks of that type"
        )
        yield subject.finding("orphan-image", "error", text, files)
    if files := listing.unlabelled:
        text = f"{images(len(files))} in a folder that gives no label: move each to good/ or to the folder of its type"
        yield subject.finding("unlabelled", "error", text, files)
    if files := listing.trained_defects:
        text = (
            f"{images(len(files))} in a training folder that is not good: "
            "only good images are trained on; move them to the test folder"
        )
        yield subject.finding("defect-in-training", "error", text, files)
