"""The graph of an exported model as an ONNX file: uint8 images of any size in, maps and scores out.

Torch's exporter traces all behind the resize, which is the operator `Resize` with antialias.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cdo_ad.deploy.graph import Whole, examples, quietly
from cdo_ad.errors import needs_extra
from cdo_ad.inference.artifact import METADATA_KEY, Metadata, write_manifest

with needs_extra("train", "exporting a run"):
    import torch

    from cdo_ad.method.model import AnomalyModel

__all__ = ["write_onnx"]

LARGEST_BATCH = 2**16


def write_onnx(model: AnomalyModel, metadata: Metadata, file: Path) -> None:
    """Write the .onnx file and its checksum.

    Raises:
        MissingExtraError: a module of torch's exporter is not installed.
    """
    with needs_extra("export", "exporting to ONNX"):
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    several = len(model.members) > 1
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    given = dict(zip(("planes", "categories"), examples(model)[: 1 + several], strict=False))
    program = quietly(
        lambda: torch.onnx.export(
            Whole(model), tuple(given.values()), dynamo=True, verbose=False,
            dynamic_shapes={name: {0: batch} for name in given},
            input_names=list(given), output_names=["maps", "scores", "chosen"][: 2 + several],
        )
    )  # fmt: skip
    made = _with_resize(program.model_proto, model.spec.image_size)
    onnx.helper.set_model_props(made, {METADATA_KEY: metadata.model_dump_json()})
    onnx.checker.check_model(made)
    file.write_bytes(made.SerializeToString())
    write_manifest(file)


def _with_resize(model: Any, size: tuple[int, int]) -> Any:
    """Put uint8 NHWC input and the antialiased resize in front of the graph, in place of its first input."""
    from onnx import TensorProto, helper

    graph = model.graph
    first, *others = graph.input
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", "height", "width", 3])
    nodes = [
        helper.make_node("Cast", ["images"], ["images_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["images_float"], ["images_planes"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "Resize",
            ["images_planes", "", "", "network_size"],
            [first.name],
            mode="linear",
            antialias=1,
            exclude_outside=1,  # weights at the border are taken of what lies inside, as in torch
            axes=[2, 3],
            coordinate_transformation_mode="half_pixel",
        ),
    ]
    body, inputs = [*nodes, *graph.node], [images, *others]
    graph.initializer.append(helper.make_tensor("network_size", TensorProto.INT64, [2], list(size)))
    del graph.node[:], graph.input[:]
    graph.node.extend(body)
    graph.input.extend(inputs)
    return model
