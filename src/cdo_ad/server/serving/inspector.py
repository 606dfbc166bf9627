"""The one way from an image to an acknowledged inspection; HTTP, gRPC and the line's sources all take it.

admit -> look at the header -> decode (threads) -> judge (batches) -> regions, sentence (threads) -> record -> answer
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cdo_ad.data.convert import as_rgb
from cdo_ad.data.reading import require_size
from cdo_ad.errors import CdoError, ConfigError
from cdo_ad.inference.engines.base import UNKNOWN
from cdo_ad.server.errors import OverloadedError
from cdo_ad.server.metrics import Metrics
from cdo_ad.server.serving.admission import Admission
from cdo_ad.server.serving.batcher import Batcher
from cdo_ad.server.serving.decoding import decode, pixels_of, png_bytes
from cdo_ad.server.serving.drift import DriftLights
from cdo_ad.server.serving.models import Model, Models
from cdo_ad.server.settings import ServerSettings
from cdo_ad.server.store.images import ImageStore
from cdo_ad.server.store.recorder import Recorder
from cdo_ad.types import Prediction

__all__ = ["Inspected", "Inspector", "Wanted"]

log = logging.getLogger("cdo_ad.server")
Result = TypeVar("Result")
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Wanted:
    """What is asked of an image."""

    product: str
    version: int | None = None
    """None for the active one."""
    category: str | None = None
    """None where nobody knows it."""
    rate: float | None = None
    """False-alarm rate to decide with; None for that of the product."""
    name: str = "image"
    source: str = "upload"
    record: bool = True


@dataclass(frozen=True)
class Inspected:
    """An acknowledged inspection."""

    row: dict[str, Any]
    """As in the table `inspections`."""
    prediction: Prediction
    image: Image
    pixel_threshold: float

    def to_json(self) -> dict[str, Any]:
        """What a client is told."""
        return {**self.row, "decision": "anomalous" if self.row["anomalous"] else "good"}


class Inspector:
    """Judges images for all who ask."""

    def __init__(
        self, settings: ServerSettings, models: Models, images: ImageStore, recorder: Recorder, metrics: Metrics
    ) -> None:
        """Start the threads that decode and judge."""
        self.models, self.metrics = models, metrics
        self.lights = DriftLights(settings.drift_alpha, metrics)
        self.admission = Admission(settings.queue, 4 * settings.max_pixels, metrics)
        self.listeners: list[Callable[[Inspected], None]] = []
        """Called with each inspection that the active version made; they must return at once."""
        self._settings, self._images, self._recorder = settings, images, recorder
        self._batcher = Batcher(settings.batch, settings.wait_ms / 1000, metrics)
        self._threads = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decode")
        self._shadows: set[asyncio.Task[None]] = set()

    async def file(self, data: bytes, wanted: Wanted) -> Inspected:
        """Judge the bytes of an image file and record it.

        Raises:
            ImageError: no image, a damaged one, or one that is too large.
            DataError, BundleError: the model is not there. ConfigError: an unknown category.
            CalibrationError: the rate cannot be guaranteed. OverloadedError: try again later.
            OutputError: it cannot be recorded.
        """
        with self.admission.image():
            model = await self.model(wanted)
            pixels = await self.run(pixels_of, data, wanted.name, self._settings.max_pixels)
            with self.admission.pixels(pixels):
                start = time.perf_counter()
                image = await self.run(decode, data, wanted.name)
                self._took("decode", start)
                return await self._judge(model, image, wanted, data, start)

    async def array(self, array: npt.NDArray[Any], wanted: Wanted) -> Inspected:
        """Judge an image that comes as pixels; raises as `file`. It is kept as a PNG."""
        with self.admission.image(), self.admission.pixels(array.shape[0] * array.shape[1]):
            start = time.perf_counter()
            image = require_size(await self.run(as_rgb, array, wanted.name), wanted.name)
            return await self._judge(await self.model(wanted), image, wanted, None, start)

    async def model(self, wanted: Wanted) -> Model:
        """The version that is meant, loaded if needed; raises as `Models.get`."""
        model = self.models.id(wanted.product, wanted.version)
        ready = self.models.ready(model)
        return ready if ready is not None else await asyncio.to_thread(self.models.get, model)

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in one of the threads for decoding and drawing."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def close(self) -> None:
        """Finish what is begun and stop the threads."""
        self._batcher.close()
        self._threads.shutdown()

    async def _judge(self, model: Model, image: Image, wanted: Wanted, data: bytes | None, start: float) -> Inspected:
        rate = self.models.rate(model.id.product) if wanted.rate is None else wanted.rate
        prediction, threshold = await self._predict(model, image, wanted, rate)
        row = _row(model, image, prediction, wanted, model.at_rate(rate).calibration.false_alarm_rate)
        kept = b""
        if wanted.record and self._keeps(prediction):
            kept = data if data is not None else await self.run(png_bytes, image)
            row["image"] = await self.run(self._images.write, kept)
        row["seconds"] = time.perf_counter() - start
        inspected = Inspected(row, prediction, image, threshold)
        if wanted.record:
            begun = time.perf_counter()
            await asyncio.wrap_future(self._recorder.inspection(dict(row), len(kept)))
            self._took("record", begun)
            self._tell(model, inspected, wanted)
        self._took("total", start)
        return inspected

    async def _predict(
        self, model: Model, image: Image, wanted: Wanted, rate: float | None
    ) -> tuple[Prediction, float]:
        detector = model.at_rate(rate)
        number = _number(detector.categories, wanted.category)
        output = await asyncio.wrap_future(self._batcher.submit(detector.engine, image, number))
        start = time.perf_counter()
        size = (image.shape[0], image.shape[1])
        prediction = await self.run(lambda: detector.prediction(output, size, number, path=wanted.name))
        self._took("finish", start)
        return prediction, detector.calibration.of(prediction.category).pixel_threshold

    def _keeps(self, prediction: Prediction) -> bool:
        return self._settings.keep == "all" or (self._settings.keep == "anomalous" and prediction.anomalous)

    def _tell(self, model: Model, inspected: Inspected, wanted: Wanted) -> None:
        product, prediction = model.id.product, inspected.prediction
        decision = "anomalous" if prediction.anomalous else "good"
        self.metrics.inspections.labels(product, str(model.id.version), decision).inc()
        if wanted.version is not None and model.id != self.models.id(product):
            return  # a trial of another version is no part of the product's stream
        self.metrics.p_values.labels(product).observe(prediction.p_value)
        self.lights.update(model, prediction.score, prediction.category)
        for listener in self.listeners:
            listener(inspected)
        if (shadow := self.models.shadow(product)) is not None and not self.admission.busy:
            task = asyncio.create_task(self._shadow(Wanted(*shadow, category=wanted.category), inspected))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)

    async def _shadow(self, wanted: Wanted, seen: Inspected) -> None:
        """Judge the same image by the shadow version; it has no say, so an error of it is a line in the log."""
        try:
            with self.admission.image():
                model = await self.model(wanted)
                rate = self.models.rate(wanted.product)
                prediction, _ = await self._predict(model, seen.image, wanted, rate)
        except OverloadedError:
            return
        except CdoError as error:
            log.warning("the shadow version cannot judge", extra={"model": list(wanted.product), "why": str(error)})
            return
        differs = prediction.anomalous != seen.prediction.anomalous
        agreement = "differs" if differs else "agrees"
        self.metrics.shadow.labels(wanted.product, str(wanted.version), agreement).inc()
        row = {"score": prediction.score, "p_value": prediction.p_value, "anomalous": prediction.anomalous}
        whose = {"inspection": seen.row["uid"], "product": wanted.product, "version": wanted.version}
        self._recorder.shadow({**row, **whose, "differs": differs})

    def _took(self, stage: str, start: float) -> None:
        self.metrics.seconds.labels(stage).observe(time.perf_counter() - start)


def _number(categories: tuple[str, ...], category: str | None) -> int:
    if len(categories) == 1:
        return 0
    if category is None:
        return UNKNOWN
    if category not in categories:
        raise ConfigError(f"there is no category {category!r}: this run has {', '.join(categories)}")
    return categories.index(category)


def _row(model: Model, image: Image, prediction: Prediction, wanted: Wanted, rate: float) -> dict[str, Any]:
    return {
        "uid": uuid.uuid4().hex,
        "at": time.time(),
        "product": model.id.product,
        "version": model.id.version,
        "image": None,
        "name": wanted.name,
        "source": wanted.source,
        "score": prediction.score,
        "p_value": prediction.p_value,
        "anomalous": prediction.anomalous,
        "threshold": prediction.threshold,
        "rate": rate,
        "sentence": prediction.sentence,
        "category": prediction.category,
        "width": image.shape[1],
        "height": image.shape[0],
        "regions": [region.to_json() for region in prediction.regions],
        "seconds": 0.0,
    }
