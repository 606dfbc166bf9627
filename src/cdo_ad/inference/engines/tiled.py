"""Large images in tiles, with any engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cdo_ad.inference.engines.base import UNKNOWN, Categories, Engine, Output
from cdo_ad.tiles import Box, cut, join, tile_boxes

__all__ = ["TiledEngine", "tiled"]

BATCH = 8
"""Tiles that the engine is given at once."""


class TiledEngine:
    """Judges tiles with an engine and joins what it says: see `cdo_ad.tiles`."""

    def __init__(self, engine: Engine, tile: int) -> None:
        """Take the engine; `tile` is the side in pixels of the image."""
        self.engine, self.tile = engine, tile
        self.name = engine.name

    def infer(self, images: npt.NDArray[np.uint8], categories: Categories | None = None) -> Output:
        """See `Engine.infer`. The map is at the tiles' scale; the whole image tells a category that nobody knows."""
        given = np.full(len(images), UNKNOWN, np.int64) if categories is None else categories
        size = (images.shape[1], images.shape[2])
        boxes = tile_boxes(size, self.tile)
        if len(boxes) == 1:
            return self.engine.infer(images, given)
        maps, scores, judged = [], [], []
        for image, category in zip(images, given, strict=True):
            known = int(category) if category != UNKNOWN else int(self.engine.infer(image[None]).categories[0])
            parts = list(self._parts(image, boxes, known))
            maps.append(join([own for part in parts for own in part.maps], boxes, size))
            scores.append(max(float(part.scores.max()) for part in parts))
            judged.append(known)
        return Output(np.stack(maps), np.array(scores, np.float32), np.array(judged, np.int64))

    def _parts(self, image: npt.NDArray[np.uint8], boxes: Sequence[Box], category: int) -> Iterator[Output]:
        for start in range(0, len(boxes), BATCH):
            batch = np.stack([cut(image, box) for box in boxes[start : start + BATCH]])
            yield self.engine.infer(batch, np.full(len(batch), category, np.int64))


def tiled(engine: Engine, tile: int) -> Engine:
    """The engine itself for whole images, else one that judges tiles."""
    return TiledEngine(engine, tile) if tile else engine
