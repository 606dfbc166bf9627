"""From numbers to one HTML file that needs nothing else; and the curves that pages share."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from cdo_ad.files import finite

__all__ = ["curve", "image_curves", "render"]

MOST_POINTS = 400


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


def image_curves(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_]) -> dict[str, dict[str, list[float]]]:
    """ROC and precision-recall of (N,) images as `image_roc` and `image_pr`; none without both kinds."""
    if not labels.any() or labels.all():
        return {}
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # ties are passed together
    hits, alarms = np.cumsum(labels[order])[last], np.cumsum(~labels[order])[last]
    return {
        "image_roc": curve(np.append(0, alarms) / (~labels).sum(), np.append(0, hits) / labels.sum(), None),
        "image_pr": curve(hits / labels.sum(), hits / (hits + alarms), None),
    }


def curve(x: npt.NDArray[Any], y: npt.NDArray[Any], most: int | None = MOST_POINTS) -> dict[str, list[float]]:
    """Points for a chart, rounded; of more than `most` those that are evenly spread along the way."""
    if most is not None and x.size > most:
        way = np.append(0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
        keep = np.unique(np.searchsorted(way, np.linspace(0, way[-1], most)))
        x, y = x[keep], y[keep]
    return {"x": np.round(x, 5).tolist(), "y": np.round(y, 5).tolist()}
