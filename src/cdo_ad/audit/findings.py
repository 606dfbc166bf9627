"""What `cdo_ad.audit.check` says: findings by level, counts and near copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["LEVELS", "PARTS", "CheckReport", "Finding", "Level"]

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
PARTS = ("train", "test_good", "test_defect")


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found in a data set, or in one of its categories."""

    findings: tuple[Finding, ...]
    """The worst first."""
    counts: Mapping[str, int]
    """Images by `PARTS`."""
    near: tuple[tuple[str, str, float], ...]
    """Near copies: two files that show the same part, and their likeness, 0..1; equal images are not among them."""
    groups: Mapping[str, str]
    """By category, what near copies there are, in one line."""

    @classmethod
    def joined(cls, reports: Sequence[CheckReport]) -> CheckReport:
        """The report of a data set from those of its categories."""
        findings = [finding for report in reports for finding in report.findings]
        return cls(
            findings=tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level))),
            counts={part: sum(report.counts[part] for report in reports) for part in PARTS},
            near=tuple(pair for report in reports for pair in report.near),
            groups={category: text for report in reports for category, text in report.groups.items()},
        )

    @property
    def ok(self) -> bool:
        """True when there is no error."""
        return not any(finding.level == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "ok": self.ok,
            "n": dict(self.counts),
            "findings": [finding.to_json() for finding in self.findings],
            "near_copies": {
                "groups": dict(self.groups),
                "pairs": [{"a": a, "b": b, "likeness": likeness} for a, b, likeness in self.near],
            },
        }
