"""From numbers to one HTML file that needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cdo_ad.errors import needs_extra
from cdo_ad.evaluation.curves import Curve, thin
from cdo_ad.files import finite, write_text

__all__ = ["points", "render", "require_report", "write_page"]

MOST_POINTS = 400


def require_report(purpose: str) -> None:
    """Raise MissingExtraError where pages cannot be made."""
    with needs_extra("report", purpose):
        import jinja2  # noqa: F401
        import plotly.offline  # noqa: F401


def render(template: str, document: dict[str, Any]) -> str:
    """The page, with the plotting library, the styles, the program and the numbers inside.

    Args:
        template: name of a file in `templates`.
        document: the numbers, ready for `json.dumps`; NaN and infinities become null.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cdo_ad.reporting"), autoescape=jinja2.select_autoescape(["html", "j2"])
    )
    text = json.dumps(finite(document), allow_nan=False).replace("<", "\\u003c")
    return environment.get_template(template).render(document=document, data=text, plotly=get_plotlyjs())


def write_page(file: Path, template: str, document: dict[str, Any]) -> Path:
    """Render and write a page, whole or not at all; raises OutputError."""
    write_text(file, render(template, document))
    return file


def points(curve: Curve) -> dict[str, list[float]]:
    """A curve for a chart, thinned and rounded."""
    x, y = thin(curve, MOST_POINTS)
    return {"x": np.round(x, 5).tolist(), "y": np.round(y, 5).tolist()}
