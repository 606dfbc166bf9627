"""A table as HTML, CSV, LaTeX or plain text."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from cdo_ad.errors import ConfigError
from cdo_ad.files import write_text
from cdo_ad.reporting.page import render, require_report
from cdo_ad.reporting.tables import Cell, Row, Table

__all__ = ["to_csv", "to_html", "to_latex", "to_text", "write_table"]

SUFFIXES = (".html", ".csv", ".tex")
LATEX = str.maketrans({c: rf"\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
                       "\\": r"\textbackslash{}"})  # fmt: skip


def write_table(table: Table, file: Path) -> None:
    """Write a table in the form that the file's ending names.

    Raises:
        ConfigError: an ending other than .html, .csv or .tex.
        MissingExtraError: .html, if the extra `report` is not installed.
        OutputError: the file cannot be written.
    """
    forms = {".html": to_html, ".csv": to_csv, ".tex": to_latex}
    if file.suffix.lower() not in forms:
        raise ConfigError(f"{file}: a table is written as {', '.join(SUFFIXES)}: choose one of these endings")
    write_text(file, forms[file.suffix.lower()](table))


def to_csv(table: Table) -> str:
    """Numbers in [0, 1]: mean and standard deviation of each metric; empty where there is none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [column for key in table.metrics for column in (key, f"{key}_std")]
    writer.writerow(["kind", *table.settings, "category", "seeds", *columns])
    for row in table.rows:
        numbers = [value for key in table.metrics for value in _pair(row.cells.get(key))]
        writer.writerow([row.kind, *row.settings, row.category, "" if row.seeds is None else row.seeds, *numbers])
    return buffer.getvalue()


def to_latex(table: Table) -> str:
    """A `tabular` for the package booktabs: numbers in percent, a rule before each choice of settings."""
    columns = "l" * (len(table.settings) + 1) + "r" * (1 + len(table.metrics))
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(map(_latex, _head(table))) + r" \\"]
    before = None
    for row in table.rows:
        block = "published" if row.kind == "published" else row.settings
        if block != before:
            lines.append(r"\midrule")
        before = block
        cells = [_text(row.cells.get(key), r" $\pm$ ", "--") for key in table.metrics]
        lines.append(" & ".join([*map(_latex, _words(row)), *cells]) + r" \\")
    return "\n".join([*(f"% {note}" for note in table.notes), *lines, r"\bottomrule", r"\end{tabular}", ""])


def to_html(table: Table) -> str:
    """One self-contained page; raises MissingExtraError."""
    require_report("a table as HTML")
    rows = [
        {"kind": row.kind, "words": _words(row), "cells": [_text(row.cells.get(key)) for key in table.metrics]}
        for row in table.rows
    ]
    document = {"title": "Runs", "head": _head(table), "rows": rows, "notes": list(table.notes),
                "words": len(table.settings) + 2, "table": table.to_json()}  # fmt: skip
    return render("table.html.j2", document)


def to_text(table: Table) -> str:
    """Aligned columns for a terminal."""
    lines = [
        _head(table),
        *([*_words(row), *(_text(row.cells.get(key)) for key in table.metrics)] for row in table.rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    words = len(table.settings) + 1
    text = [
        "  ".join(
            cell.ljust(w) if i < words else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([*(line.rstrip() for line in text), *(note for note in table.notes)])


def _head(table: Table) -> list[str]:
    return [*table.settings, "category", "seeds", *table.metrics.values()]


def _words(row: Row) -> list[str]:
    return [*row.settings, row.category, "?" if row.seeds is None else str(row.seeds)]


def _text(cell: Cell | None, between: str = " ± ", none: str = "-") -> str:
    """In percent, e.g. ``98.22 ± 0.05``."""
    if cell is None:
        return none
    return f"{100 * cell.mean:.2f}" + ("" if cell.std is None else f"{between}{100 * cell.std:.2f}")


def _pair(cell: Cell | None) -> tuple[str, str]:
    if cell is None:
        return "", ""
    return f"{cell.mean:.6f}", "" if cell.std is None else f"{cell.std:.6f}"


def _latex(text: str) -> str:
    return text.translate(LATEX)
