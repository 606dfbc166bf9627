"""What the rules judge: the images of one category that can be read, and what is known of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cdo_ad.audit.findings import PARTS, Finding, Level
from cdo_ad.audit.statistics import Facts
from cdo_ad.files import relative_name
from cdo_ad.types import Sample

__all__ = ["Subject", "images"]


@dataclass(frozen=True, slots=True)
class Subject:
    """One category of a data set."""

    root: Path
    """The data set's folder."""
    category: str
    """Empty where there is only one."""
    image_size: tuple[int, int]
    """(h, w) of the networks' input."""
    samples: tuple[Sample, ...]
    """Those whose image can be read."""
    facts: Mapping[Path, Facts]
    """Of each."""

    @property
    def paths(self) -> list[Path]:
        """The images' files, in the order of the samples."""
        return [sample.path for sample in self.samples]

    @property
    def to_train_on(self) -> list[Path]:
        """The files of the good images that a training uses, to learn from or to calibrate with."""
        return [sample.path for sample in self.samples if sample.split != "test"]

    @property
    def part_of(self) -> dict[Path, str]:
        """`train` or `test`, for each file."""
        return {sample.path: "test" if sample.split == "test" else "train" for sample in self.samples}

    @property
    def defect_of(self) -> dict[Path, str]:
        """The type of each image's defect, or `good`."""
        return {sample.path: sample.defect_type for sample in self.samples}

    def counts(self) -> dict[str, int]:
        """Images by `PARTS`."""
        counts = dict.fromkeys(PARTS, 0)
        for sample in self.samples:
            counts["train" if sample.split != "test" else "test_defect" if sample.anomalous else "test_good"] += 1
        return counts

    def name(self, path: Path) -> str:
        """The path relative to the data set."""
        return relative_name(path, self.root)

    def finding(self, kind: str, level: Level, text: str, files: Iterable[str | Path] = ()) -> Finding:
        """A finding; the category is put before its sentence, where there is one."""
        names = tuple(file if isinstance(file, str) else self.name(file) for file in files)
        return Finding(kind, level, f"{self.category}: {text}" if self.category else text, names)


def images(count: int) -> str:
    """`1 image`, `2 images`."""
    return "1 image" if count == 1 else f"{count} images"
