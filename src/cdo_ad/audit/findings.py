"""What `cdo_ad.audit.check` says: findings by level, counts and near duplicates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from cdo_ad.data.near_copies import HASH_BITS

__all__ = ["LEVELS", "CheckReport", "Finding", "Level"]

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
PARTS = ("fit", "calibration", "test_good", "test_defect")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing."""

    kind: str
    """A short fixed name, for programs."""
    level: Level
    text: str
    """What, why it matters, what to do; one sentence or two."""
    files: tuple[str, ...] = ()
    """The files concerned, relative to the data set; for pairs `a = b`."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "kind": self.kind,
            "level": self.level,
            "text": self.text,
            "count": len(self.files),
            "files": list(self.files),
        }


@dataclass
class CheckReport:
    """All findings, the worst first."""

    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    """Images by `fit`, `calibration`, `test_good`, `test_defect`."""
    near: list[tuple[str, str, int]] = field(default_factory=list)
    """Near duplicates: two files and the bits in which their hashes differ."""
    limits: dict[str, int] = field(default_factory=dict)
    """By category, the bits up to which images counted as near."""

    @property
    def ok(self) -> bool:
        """True when there is no error."""
        return not any(finding.level == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "ok": self.ok,
            "n": self.counts,
            "findings": [finding.to_json() for finding in self.findings],
            "near_duplicates": {
                "bits": HASH_BITS,
                "limits": self.limits,
                "pairs": [{"a": a, "b": b, "distance": distance} for a, b, distance in self.near],
            },
        }
