"""Watching a source without a server: judge each image, tell the sinks, go on."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from cdo_ad.data.decode import decode_image
from cdo_ad.errors import ImageError
from cdo_ad.inference.detector import Detector
from cdo_ad.server.line.delivery import Delivery
from cdo_ad.server.line.frames import Frame, Source
from cdo_ad.server.line.outbox import Message, Outbox
from cdo_ad.server.line.sinks import open_sink, shown
from cdo_ad.types import Prediction

__all__ = ["watch"]


def watch(
    detector: Detector,
    source: Source,
    sinks: Sequence[str],
    state: Path,
    stop: threading.Event,
    *,
    name: str = "watch",
    category: str | None = None,
) -> Iterator[Message]:
    """Judge the images of a source.

    Args:
        detector: the calibrated model.
        source: see `open_source`; a live one gives its newest image.
        sinks: texts, see `cdo_ad.server.line.sinks`; none of them can hold the watch up.
        state: folder for the sinks' outboxes.
        stop: set it to end.
        name: what messages call the product.
        category: what all images show, in a run of several categories.

    Yields:
        A message for each image once all outboxes hold it; `{"name", "error"}` for one that cannot be judged.

    Raises:
        LineError: a source or a sink that cannot be used. ConfigError: a run that looks at depth.
    """
    if detector.bundle is not None:
        detector.bundle.require_images_alone("a watched source")
    with ExitStack() as stack:
        outboxes = []
        for text in sinks:
            outbox = Outbox(state / f"outbox-{hashlib.sha256(shown(text).encode()).hexdigest()[:16]}.sqlite")
            stack.callback(outbox.close)
            delivery = Delivery(shown(text), open_sink(text), outbox)
            stack.callback(delivery.close)
            outboxes.append((outbox, delivery))
        stack.callback(source.close)
        for frame in source.frames(stop):
            message = _judged(detector, frame, name, category)
            if "error" not in message:
                for outbox, delivery in outboxes:
                    outbox.put(message)
                    delivery.wake()
            frame.done("error" not in message)
            yield message


def _judged(detector: Detector, frame: Frame, name: str, category: str | None) -> Message:
    try:
        image = frame.content if isinstance(frame.content, np.ndarray) else decode_image(frame.content, frame.name)
        prediction = detector.predict(image, category=category, path=frame.name)
    except ImageError as error:
        return {"name": frame.name, "error": str(error)}
    return _message(detector, frame, prediction, name)


def _message(detector: Detector, frame: Frame, prediction: Prediction, name: str) -> Message:
    about: dict[str, Any] = prediction.to_json()
    about["regions"] = [{k: v for k, v in region.items() if k != "contour"} for region in about["regions"]]
    for key in ("path", "category_given"):
        del about[key]
    height, width = prediction.anomaly_map.shape
    return {
        "uid": uuid.uuid4().hex,
        "at": time.time(),
        "product": name,
        "name": frame.name,
        "decision": "anomalous" if prediction.anomalous else "good",
        **about,
        "rate": detector.calibration.false_alarm_rate,
        "width": width,
        "height": height,
        "latency": time.time() - frame.at,
    }
