"""The one graph of an exported model: uint8 images of any size in, maps and scores out, as OpenVINO or ONNX file.

- Resize (antialiased, the same as in training), normalisation, both networks, discrepancy, map with blur, score.
- The networks' part has a fixed input size and is traced by torch; the resize is ONNX Runtime's own operator `Resize`
  with antialias there, and `cdo_ad.deploy.resize` in OpenVINO (which would ignore the antialias flag of ONNX).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cdo_ad.deploy.resize import resized
from cdo_ad.errors import needs_extra
from cdo_ad.inference.artifact import METADATA_KEY, Metadata, import_openvino, seal

with needs_extra("train", "exporting a run"):
    import torch
    from timm.layers.conv2d_same import Conv2dSame
    from torch.nn import functional as F

    from cdo_ad.method.network import CdoNetwork

__all__ = ["openvino_model", "save_openvino", "set_metadata", "with_fixed_padding", "write_onnx", "write_openvino"]


class _Core(torch.nn.Module):
    """The part behind the resize: (B, 3, H, W) float images in 0..255 at the networks' size to maps and scores."""

    def __init__(self, network: CdoNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps, scores = self.network(images)
        return maps, scores


def _prepare(network: CdoNetwork) -> tuple[_Core, torch.Tensor]:
    example = torch.zeros(2, 3, *network.image_size)
    core = _Core(with_fixed_padding(network.cpu().eval(), example))
    with torch.no_grad():
        core(example)  # fills the cache of constant matrices, which must not be made while tracing
    return core, example


def with_fixed_padding(network: CdoNetwork, example: torch.Tensor) -> CdoNetwork:
    """A copy whose convolutions no longer compute their padding from the image's size, which here is known.

    timm's copies of TensorFlow's models do, in dozens of nodes for each convolution with a stride. The numbers are
    the same; Lite0's graph is a third shorter.
    """
    network = copy.deepcopy(network)
    sizes: dict[str, tuple[int, int]] = {}
    padded = [(name, module) for name, module in network.named_modules() if isinstance(module, Conv2dSame)]
    hooks = [
        module.register_forward_hook(lambda _, inputs, __, name=name: sizes.update({name: inputs[0].shape[-2:]}))
        for name, module in padded
    ]
    with torch.no_grad():
        network(example)
    for hook in hooks:
        hook.remove()
    for name, module in padded:
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, _PaddedConvolution(module, sizes[name]))
    return network.eval()


class _PaddedConvolution(torch.nn.Module):
    """A `Conv2dSame` for images of one size (H, W)."""

    def __init__(self, convolution: torch.nn.Conv2d, size: tuple[int, int]) -> None:
        super().__init__()
        self.convolution = convolution
        sides = zip(size, convolution.kernel_size, convolution.stride, convolution.dilation, strict=True)
        (top, bottom), (left, right) = (_same_padding(*side) for side in sides)
        self.padding = (left, right, top, bottom)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        c = self.convolution
        return F.conv2d(F.pad(x, self.padding), c.weight, c.bias, c.stride, 0, c.dilation, c.groups)


def _same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros before and behind one axis, such that the result has ceil(size / stride) places (TensorFlow's "SAME")."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _quietly(function: Callable[[], Any]) -> Any:
    """Tracers warn of Python values that become constants, which is what is wanted here."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return function()


def openvino_model(network: CdoNetwork, metadata: Metadata) -> Any:
    """The whole graph, metadata inside, as an `openvino.Model`."""
    ov = import_openvino("exporting to OpenVINO")
    core, example = _prepare(network)

    def convert() -> Any:
        traced = torch.jit.trace(core, example, check_trace=False)  # type: ignore[no-untyped-call]
        return ov.convert_model(traced, example_input=example, input=[-1, 3, *network.image_size])

    inner = _quietly(convert)
    (planes,) = inner.inputs
    images = ov.opset13.parameter(ov.PartialShape([-1, -1, -1, 3]), np.uint8)
    small = resized(images, network.image_size).output(0)
    for consumer in list(planes.get_target_inputs()):
        consumer.replace_source_output(small)
    model = ov.Model(inner.get_results(), [images], "cdo-ad")
    for output, name in zip(model.outputs, ("maps", "scores"), strict=True):
        output.get_tensor().set_names({name})
    model.inputs[0].get_tensor().set_names({"images"})
    set_metadata(model, metadata)
    return model


def set_metadata(model: Any, metadata: Metadata) -> None:
    """Put metadata into an `openvino.Model`, in place of what it carried."""
    model.set_rt_info(metadata.to_json(), [METADATA_KEY, "metadata"])


def write_openvino(network: CdoNetwork, metadata: Metadata, file: Path) -> None:
    """Write the .xml file, sealed, and its .bin."""
    save_openvino(openvino_model(network, metadata), file)


def save_openvino(model: Any, file: Path) -> None:
    """Save and seal; weights stay in float32."""
    ov = import_openvino("exporting to OpenVINO")
    ov.save_model(model, file, compress_to_fp16=False)
    seal(file)


def write_onnx(network: CdoNetwork, metadata: Metadata, file: Path) -> None:
    """Write the .onnx file, sealed."""
    with needs_extra("export", "exporting to ONNX"):
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    core, example = _prepare(network)

    def convert() -> Any:
        batch = torch.export.Dim("batch", min=1, max=2**16)
        return torch.onnx.export(
            core,
            (example,),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: batch},),
            input_names=["planes"],
            output_names=["maps", "scores"],
        )

    program = _quietly(convert)
    model = _with_resize(program.model_proto, network.image_size)
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.checker.check_model(model)
    file.write_bytes(model.SerializeToString())
    seal(file)


def _with_resize(model: Any, size: tuple[int, int]) -> Any:
    """Put uint8 NHWC input and the antialiased resize in front of the graph."""
    from onnx import TensorProto, helper

    graph = model.graph
    inner = graph.input[0].name
    sizes = helper.make_tensor("network_size", TensorProto.INT64, [2], list(size))
    nodes = [
        helper.make_node("Cast", ["images"], ["images_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["images_float"], ["images_planes"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "Resize",
            ["images_planes", "", "", "network_size"],
            [inner],
            mode="linear",
            antialias=1,
            exclude_outside=1,  # weights at the border are taken of what lies inside, as in torch
            axes=[2, 3],
            coordinate_transformation_mode="half_pixel",
        ),
    ]
    graph.initializer.append(sizes)
    body = [*nodes, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(body)
    graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", "height", "width", 3]))
    return model
