"""What the protocol's two sides share: what a model takes and gives, and the way through the inspector."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cdo_ad.errors import ConfigError
from cdo_ad.server.oip.tensors import Tensor, text_tensor
from cdo_ad.server.service import Service
from cdo_ad.server.serving.inspector import Inspected, Wanted
from cdo_ad.version import __version__

__all__ = ["EXTENSIONS", "INPUTS", "OUTPUTS", "SERVER", "infer", "parse_version", "versions_of"]

SERVER = {"name": "cdo-ad", "version": __version__}
EXTENSIONS = ["binary_tensor_data", "model_repository"]
INPUTS: tuple[dict[str, Any], ...] = (
    {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
    {"name": "file", "datatype": "BYTES", "shape": [-1]},
    {"name": "category", "datatype": "BYTES", "shape": [-1]},
)
"""Give either `image` (N RGB images of one size) or `file` (N image files); `category` may be left out."""
OUTPUTS: tuple[dict[str, Any], ...] = (
    {"name": "score", "datatype": "FP64", "shape": [-1]},
    {"name": "p_value", "datatype": "FP64", "shape": [-1]},
    {"name": "anomalous", "datatype": "BOOL", "shape": [-1]},
    {"name": "threshold", "datatype": "FP64", "shape": [-1]},
    {"name": "sentence", "datatype": "BYTES", "shape": [-1]},
    {"name": "category", "datatype": "BYTES", "shape": [-1]},
    {"name": "regions", "datatype": "BYTES", "shape": [-1]},
    {"name": "uid", "datatype": "BYTES", "shape": [-1]},
    {"name": "map", "datatype": "FP32", "shape": [-1, -1, -1]},
)
"""`regions` is JSON; `map` is the anomaly map at the image's size, which is given where all images have one size."""
_NAMES = tuple(output["name"] for output in OUTPUTS)


def versions_of(service: Service, product: str) -> list[str]:
    """Numbers of a product's versions; raises NotFoundError."""
    service.catalogue.product(product)
    return [str(version.number) for version in reversed(service.catalogue.versions(product))]


def parse_version(text: str) -> int | None:
    """A version of the protocol, which is a text: empty for the active one; raises ConfigError."""
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**31):
        raise ConfigError(f"{text!r} is no version: versions are whole numbers from 1 on")
    return int(text)


async def infer(
    service: Service,
    product: str,
    version: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[str],
    parameters: Mapping[str, Any],
) -> tuple[int, list[Tensor]]:
    """Judge the images of a request.

    Args:
        service: the server's parts.
        product: the model's name.
        version: as a text; empty for the active one.
        inputs: see `INPUTS`.
        outputs: names of those wanted; none for all.
        parameters: `rate` may be given: the false-alarm rate to decide with.

    Returns:
        The version that judged, and the outputs in the order in which they were asked for.

    Raises:
        ConfigError: inputs or outputs that the model does not have; besides that as `Inspector.file`.
    """
    for name in outputs:
        if name not in _NAMES:
            raise ConfigError(f"there is no output {name!r}: this model gives {', '.join(_NAMES)}")
    images, categories = _images(inputs, service.settings.queue)
    rate = _rate(parameters)
    found: list[Inspected] = []
    step = min(service.settings.batch, service.settings.queue)
    async with asyncio.timeout(service.settings.timeout):
        for start in range(0, len(images), step):
            chunk = zip(images[start : start + step], categories[start : start + step], strict=True)
            wanted = [
                (image, Wanted(product, parse_version(version), category, rate, name="tensor", source="protocol"))
                for image, category in chunk
            ]
            found += await asyncio.gather(*(_one(service, image, each) for image, each in wanted))
    return int(found[0].row["version"]), _outputs(found, outputs)


async def _one(service: Service, image: Any, wanted: Wanted) -> Inspected:
    if isinstance(image, bytes):
        return await service.inspector.file(image, wanted)
    return await service.inspector.array(image, wanted)


def _images(inputs: Sequence[Tensor], most: int) -> tuple[list[Any], list[str | None]]:
    given = {tensor.name: tensor for tensor in inputs}
    if unknown := set(given) - {each["name"] for each in INPUTS}:
        raise ConfigError(f"there is no input {min(unknown)!r}: this model takes image or file, and category")
    if ("image" in given) == ("file" in given):
        raise ConfigError("give one of the inputs image (UINT8, N x H x W x 3) and file (BYTES, N)")
    images = _pixels(given["image"]) if "image" in given else _files(given["file"])
    if not 1 <= len(images) <= most:
        raise ConfigError(f"a request holds 1 to {most} images, got {len(images)}")
    if "category" not in given:
        return images, [None] * len(images)
    names = given["category"].array.ravel()
    if given["category"].datatype != "BYTES" or len(names) != len(images):
        raise ConfigError(f"the input category must be BYTES, one for each of the {len(images)} images")
    return images, [name.decode("utf-8", "replace") or None for name in names]


def _pixels(tensor: Tensor) -> list[Any]:
    array = tensor.array
    if tensor.datatype != "UINT8" or array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape[-3:]:
        raise ConfigError(f"the input image must be UINT8 of N x H x W x 3, got {tensor.datatype} of {tensor.shape}")
    return list(array if array.ndim == 4 else array[None])


def _files(tensor: Tensor) -> list[Any]:
    if tensor.datatype != "BYTES":
        raise ConfigError(f"the input file must be BYTES, got {tensor.datatype}")
    return list(tensor.array.ravel())


def _rate(parameters: Mapping[str, Any]) -> float | None:
    rate = parameters.get("rate")
    if rate is None:
        return None
    if isinstance(rate, str):  # the gRPC client sends no fractions but as text
        try:
            rate = float(rate)
        except ValueError as error:
            raise ConfigError(f"the parameter rate must lie between 0 and 1, got {rate!r}") from error
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1:
        raise ConfigError(f"the parameter rate must lie between 0 and 1, got {rate!r}")
    return float(rate)


def _outputs(found: Sequence[Inspected], wanted: Sequence[str]) -> list[Tensor]:
    sizes = {item.prediction.anomaly_map.shape for item in found}
    if "map" in wanted and len(sizes) > 1:
        raise ConfigError("the output map needs images of one size: send the others in a request of their own")
    names = wanted or [name for name in _NAMES if name != "map" or len(sizes) == 1]
    return [_output(name, found) for name in names]


def _output(name: str, found: Sequence[Inspected]) -> Tensor:
    if name == "map":
        return Tensor(name, np.stack([item.prediction.anomaly_map for item in found]))
    if name == "anomalous":
        return Tensor(name, np.array([item.prediction.anomalous for item in found], np.bool_))
    if name in ("score", "p_value", "threshold"):
        return Tensor(name, np.array([item.row[name] for item in found], np.float64))
    if name == "regions":
        return text_tensor(name, [json.dumps(item.row["regions"]) for item in found])
    return text_tensor(name, [item.row[name] for item in found])
