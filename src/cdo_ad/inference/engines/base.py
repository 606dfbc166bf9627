"""The contract of all engines: images in, anomaly maps, image scores and categories out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from cdo_ad.types import Float32Array

__all__ = [
    "UNKNOWN", "Categories", "DepthEngine", "Engine", "Given", "Output", "StreamingEngine", "infer_stream",
    "infer_with_depth", "surface_size",
]  # fmt: skip

UNKNOWN = -1
"""In the place of a category's number: the model recognises it."""

Categories = npt.NDArray[np.int64]
Given = tuple[npt.NDArray[np.uint8], int, Float32Array | None]
"""(H, W, 3) uint8 RGB, its category's number or `UNKNOWN`, and its surface (2, h, w), see `cdo_ad.data.surface`; None
where the model looks at images alone."""


class Output(NamedTuple):
    """What an engine says of B images."""

    maps: Float32Array
    """(B, h, w) float32 >= 0, at the networks' input size."""
    scores: Float32Array
    """(B,) float32."""
    categories: Categories
    """(B,) int64, the number of the category that each image was judged as."""


class Engine(Protocol):
    """Runs a model on images of one size."""

    name: str

    def infer(self, images: npt.NDArray[np.uint8], categories: Categories | None = None) -> Output:
        """Judge images.

        Args:
            images: (B, H, W, 3) uint8 RGB, any H and W.
            categories: (B,) numbers of their categories, `UNKNOWN` where the model shall recognise it; None for all
                unknown. A model of one category does not look at them.
        """
        ...


@runtime_checkable
class StreamingEngine(Protocol):
    """An engine that can have several images in flight."""

    def infer_many(self, items: Iterable[tuple[npt.NDArray[np.uint8], int]]) -> Iterator[Output]:
        """See `infer_stream`."""
        ...


@runtime_checkable
class DepthEngine(Protocol):
    """An engine whose model looks at the surface beside each image; its `infer` raises ConfigError."""

    name: str

    @property
    def surface_size(self) -> tuple[int, int]:
        """(h, w) of the surfaces: the model's input size."""
        ...

    def infer(self, images: npt.NDArray[np.uint8], categories: Categories | None = None) -> Output:
        """See `Engine.infer`."""
        ...

    def infer_depth(
        self, images: npt.NDArray[np.uint8], surfaces: Float32Array, categories: Categories | None = None
    ) -> Output:
        """As `Engine.infer`, with surfaces (B, 2, h, w) float32, see `cdo_ad.data.surface`."""
        ...


def surface_size(engine: Engine) -> tuple[int, int] | None:
    """(h, w) of the surfaces that an engine's model looks at; None for images alone."""
    return engine.surface_size if isinstance(engine, DepthEngine) else None


def infer_with_depth(engine: Engine, items: Iterable[Given]) -> Iterator[Output]:
    """As `infer_stream`, of images with their surfaces.

    Raises:
        ConfigError: the model looks at depth, and an item has no surface.
    """
    if not isinstance(engine, DepthEngine):
        yield from infer_stream(engine, ((image, category) for image, category, _ in items))
        return
    for image, category, surface in items:
        numbers = np.array([category], np.int64)
        if surface is None:
            yield engine.infer(image[None], numbers)  # says what is missing
        else:
            yield engine.infer_depth(image[None], surface[None], numbers)


def infer_stream(engine: Engine, items: Iterable[tuple[npt.NDArray[np.uint8], int]]) -> Iterator[Output]:
    """Judge a stream of images in order; an engine that can have several in flight does.

    Args:
        engine: any engine.
        items: (H, W, 3) uint8 images of any sizes, each with its category's number or `UNKNOWN`; taken as needed.

    Yields:
        For each image what `Engine.infer` gives for a batch of one.
    """
    if isinstance(engine, StreamingEngine):
        yield from engine.infer_many(items)
        return
    for image, category in items:
        yield engine.infer(image[None], np.array([category], np.int64))
