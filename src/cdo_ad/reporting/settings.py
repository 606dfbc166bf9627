"""Names of runs, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdo_ad.config import Config

__all__ = ["different_settings", "run_names"]


def run_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart; numbered paths where the same run comes twice."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{folder} ({number})" for number, folder in enumerate(folders, 1)]


def different_settings(configs: Sequence[Config], passed_over: Sequence[str] = ()) -> dict[str, list[Any]]:
    """By name of each setting that is not the same in all runs, its values run by run.

    Args:
        configs: of the runs.
        passed_over: settings that are not looked at.
    """
    documents = [config.to_json() for config in configs]
    names = [name for name in documents[0] if name not in passed_over]
    columns = {name: [document.get(name) for document in documents] for name in names}
    return {name: values for name, values in columns.items() if any(value != values[0] for value in values)}
