"""The resize inside OpenVINO's graph equals torch's, whatever the sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cdo_ad.method.preprocess import resize

openvino = pytest.importorskip("openvino", reason="needs the extra runtime")
from cdo_ad.deploy.resize import resized  # noqa: E402
from cdo_ad.inference.engines.openvino import openvino_core  # noqa: E402

SOURCES = [(64, 96), (65, 95), (900, 900), (37, 50), (3, 5), (1, 1), (1, 300), (5000, 7), (64, 50), (36, 51)]


def compiled(size: tuple[int, int]) -> Any:
    images = openvino.opset13.parameter(openvino.PartialShape([-1, -1, -1, 3]), np.uint8)
    model = openvino.Model([openvino.opset13.result(resized(images, size))], [images], "resize")
    return openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.mark.parametrize("size", [(64, 96), (37, 50), (288, 288)])
def test_it_is_torch_s(size: tuple[int, int]) -> None:
    model = compiled(size)
    generator = np.random.default_rng(0)
    for source in SOURCES:
        images = generator.integers(0, 256, (2, *source, 3), dtype=np.uint8)
        expected = resize(torch.from_numpy(images).permute(0, 3, 1, 2).float(), size).numpy()
        found = model({0: images})[0]
        assert found.shape == (2, 3, *size)
        # positions are float32 in both: a rounding of 1.2e-7 of the axis moves a pixel by that times the contrast
        np.testing.assert_allclose(found, expected, atol=255 * 1.2e-7 * max(*source, *size), err_msg=str(source))


def test_one_image_leaves_nothing_dynamic_behind_it() -> None:
    images = openvino.opset13.parameter(openvino.PartialShape([1, -1, -1, 3]), np.uint8)
    assert resized(images, (64, 96)).get_output_partial_shape(0) == openvino.PartialShape([1, 3, 64, 96])
