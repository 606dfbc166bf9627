"""Large images in tiles, with any engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cdo_ad.inference.engines.base import UNKNOWN, Categories, Engine, Output
from cdo_ad.spec import ModelSpec
from cdo_ad.tiles import Box, cut, join, tile_boxes
from cdo_ad.types import Float32Array

__all__ = ["TiledEngine", "tiled"]

BATCH = 8
"""Tiles that the engine is given at once."""


class TiledEngine:
    """Judges tiles with an engine and joins what it says: see `cdo_ad.tiles`."""

    def __init__(self, engine: Engine, tile: int, categories: int = 1) -> None:
        """Take the engine.

        Args:
            engine: judges the tiles.
            tile: their side in pixels of the image.
            categories: that the engine's model knows.
        """
        self.engine, self.tile, self.only = engine, tile, categories == 1
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
            known = 0 if self.only else int(category)
            if known == UNKNOWN:  # costs memory: all pixels of the image as floats
                known = int(self.engine.infer(image[None]).categories[0])
            found: list[float] = []
            maps.append(join(self._maps(image, boxes, known, found), boxes, size))
            scores.append(max(found))
            judged.append(known)
        return Output(np.stack(maps), np.array(scores, np.float32), np.array(judged, np.int64))

    def _maps(
        self, image: npt.NDArray[np.uint8], boxes: Sequence[Box], category: int, scores: list[float]
    ) -> Iterator[Float32Array]:
        """The map of each tile, one after another; its score is added to `scores`."""
        for start in range(0, len(boxes), BATCH):
            batch = np.stack([cut(image, box) for box in boxes[start : start + BATCH]])
            part = self.engine.infer(batch, np.full(len(batch), category, np.int64))
            scores += part.scores.tolist()
            yield from part.maps


def tiled(engine: Engine, spec: ModelSpec) -> Engine:
    """The engine of a model itself where it judges whole images, else one that judges tiles."""
    return TiledEngine(engine, spec.tile, len(spec.categories)) if spec.tile else engine
