"""The one graph of an exported model: uint8 images of any size in, maps and scores out, as OpenVINO or ONNX file.

- Resize (antialiased, the same as in training), normalisation, networks, branches, map, score; in a model of several
  categories also their choice. There each category's branches see the images of this category alone, so a category
  that no image shows costs next to nothing.
- The part behind the resize has a fixed input size and is traced by torch. The resize is ONNX Runtime's own operator
  `Resize` with antialias there, and `cdo_ad.deploy.resize` in OpenVINO (which would ignore ONNX's antialias flag).
- The OpenVINO graph is put together from parts that are traced one by one: int8 exchanges the networks alone, and the
  names of all nodes begin with that of their stage.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cdo_ad.deploy.resize import resized
from cdo_ad.errors import needs_extra
from cdo_ad.inference.artifact import METADATA_KEY, Metadata, write_manifest
from cdo_ad.inference.engines.openvino import import_openvino

with needs_extra("train", "exporting a run"):
    import torch
    from torch import Tensor, nn

    from cdo_ad.method.backbone import Backbone
    from cdo_ad.method.branches import Inputs
    from cdo_ad.method.discrepancy import discrepancies, image_score
    from cdo_ad.method.model import AnomalyModel, Features

__all__ = ["STAGES", "Networks", "openvino_model", "openvino_networks", "save_openvino", "set_metadata", "write_onnx"]

STAGES = ("resize", "networks", "branches", "score")
"""The names of an OpenVINO graph's nodes begin with one of these and a slash; `branches` makes the map too."""
LARGEST_BATCH = 2**16


class _Judge(nn.Module):
    """Behind the networks: (B, 3, H, W) planes and the networks' maps to anomaly maps and, of several, categories."""

    def __init__(self, model: AnomalyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, planes: Tensor, categories: Tensor | None, *features: Tensor) -> tuple[Tensor, ...]:
        model, levels = self.model, len(features) if self.model.apprentice is None else len(features) // 2
        expert, apprentice = features[:levels], features[levels:]
        seen = Features(planes, list(expert), discrepancies(expert, apprentice) if apprentice else [])
        inputs = model.inputs(seen)
        if len(model.members) == 1:
            return (model.finish(model.branches(), list(model.branches().maps(inputs).values())),)
        chosen = model.choose(expert, categories)
        parts, places = [], []
        for number in range(len(model.members)):
            own, at = model.branches(number), (chosen == number).nonzero()[:, 0]
            parts.append(model.finish(own, list(own.maps(_some(inputs, at)).values())))
            places.append(at)
        return torch.cat(parts)[torch.cat(places).argsort()], chosen


def _some(inputs: Inputs, at: Tensor) -> Inputs:
    vectors = {name: vectors[:, at] for name, vectors in inputs.vectors.items()}
    return Inputs([level[at] for level in inputs.levels], vectors, inputs.context[at], inputs.cells[at])


class _Normalize(nn.Module):
    def __init__(self, model: AnomalyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, planes: Tensor) -> Tensor:
        return self.model.normalize(planes)


class _Network(nn.Module):
    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.network = network

    def forward(self, normalized: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(normalized))


class _Score(nn.Module):
    def __init__(self, top: float) -> None:
        super().__init__()
        self.top = top

    def forward(self, maps: Tensor) -> Tensor:
        return image_score(maps, self.top)


class _Whole(nn.Module):
    """All of these: (B, 3, H, W) float planes in 0..255 at the input size to maps, scores and, of several, categories.

    `AnomalyModel.judge` does the same, but asks Python which categories there are, which no tracer can follow.
    """

    def __init__(self, model: AnomalyModel) -> None:
        super().__init__()
        self.model = model
        self.judge = _Judge(model)

    def forward(self, planes: Tensor, categories: Tensor | None = None) -> tuple[Tensor, ...]:
        normalized = self.model.normalize(planes)
        features = self.model.expert(normalized)
        if self.model.apprentice is not None:
            features = [*features, *self.model.apprentice(normalized)]
        maps, *chosen = self.judge(planes, categories, *features)
        return maps, image_score(maps, self.model.spec.score_top), *chosen


def _examples(model: AnomalyModel) -> tuple[Tensor, Tensor]:
    """Planes and categories to trace with; they also fill the caches of matrices, which no tracer may fill."""
    model.cpu().eval()
    planes = 255 * torch.rand(2, 3, *model.spec.image_size, generator=torch.Generator().manual_seed(0))
    categories = torch.arange(2) % len(model.members)
    with torch.no_grad():
        _Whole(model)(planes, categories)
    return planes, categories


def _quietly(function: Callable[[], Any]) -> Any:
    """Tracers warn of Python values that become constants, which is what is wanted here."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return function()


# ---- OpenVINO


class Networks(NamedTuple):
    """The networks as an `openvino.Model` each: (B, 3, H, W) normalised images to three maps."""

    expert: Any
    apprentice: Any | None


def openvino_networks(model: AnomalyModel) -> Networks:
    """The networks of a model in float32."""
    planes, _ = _examples(model)

    def network(backbone: Backbone, name: str) -> Any:
        return _traced(_Network(backbone), f"networks/{name}.", normalized=planes)

    apprentice = None if model.apprentice is None else network(model.apprentice, "apprentice")
    return Networks(network(model.expert, "expert"), apprentice)


def openvino_model(model: AnomalyModel, metadata: Metadata, networks: Networks | None = None) -> Any:
    """The whole graph, metadata inside, as an `openvino.Model`.

    Args:
        model: fitted; it is moved to the CPU.
        metadata: what the graph says of itself.
        networks: in the place of the model's own.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    ov = import_openvino("exporting to OpenVINO")
    op = ov.opset13
    planes, numbers = _examples(model)
    networks = networks or openvino_networks(model)
    images = op.parameter(ov.PartialShape([-1, -1, -1, 3]), np.uint8, "images")
    categories = op.parameter(ov.PartialShape([-1]), np.int64, "categories")
    small = _named(ov.Model([op.result(resized(images, model.spec.image_size))], [images], "resize"), "resize/")
    front = small.get_results()[0].input_value(0)
    (normalized,) = _behind(_traced(_Normalize(model), "resize/normalize.", planes=planes), planes=front)
    features = [o for each in networks if each is not None for o in _behind(each.clone(), normalized=normalized)]
    with torch.no_grad():
        shapes = [m for each in (model.expert, model.apprentice) if each is not None for m in each(planes)]
    named = {f"features{i}": feature for i, feature in enumerate(features)}
    judge = _traced(
        _Judge(model), "branches/", planes=planes, categories=numbers,
        **{name: m for name, m in zip(named, shapes, strict=True)},
    )  # fmt: skip
    maps, *chosen = _behind(judge, planes=front, categories=categories.output(0), **named)
    (scores,) = _behind(
        _traced(_Score(model.spec.score_top), "score/", maps=torch.zeros(2, *model.spec.image_size)), maps=maps
    )
    results = [op.result(output) for output in (maps, scores, *chosen)]
    whole = ov.Model(results, [images, categories][: 1 + len(chosen)], "cdo-ad")
    for output, name in zip(whole.outputs, ("maps", "scores", "chosen"), strict=False):
        output.get_tensor().set_names({name})
    for given, name in zip(whole.inputs, ("images", "categories"), strict=False):
        given.get_tensor().set_names({name})
    set_metadata(whole, metadata)
    return whole


def _traced(module: nn.Module, prefix: str, **examples: Tensor) -> Any:
    """A module as an `openvino.Model` of any batch, whose inputs and nodes have names."""
    ov = import_openvino("exporting to OpenVINO")
    values = tuple(examples.values())

    def convert() -> Any:
        traced = torch.jit.trace(module.eval(), values, check_trace=False)  # type: ignore[no-untyped-call]
        return ov.convert_model(traced, example_input=values, input=[[-1, *v.shape[1:]] for v in values])

    found = _quietly(convert)
    assert len(found.inputs) == len(values)
    for given, name in zip(found.inputs, examples, strict=True):
        given.get_tensor().set_names({name})
    return _named(found, prefix)


def _named(part: Any, prefix: str) -> Any:
    for node in part.get_ordered_ops():
        node.set_friendly_name(prefix + node.get_friendly_name())
    return part


def _behind(part: Any, **sources: Any) -> list[Any]:
    """Feed a part's inputs, by name, from other nodes' outputs; returns its own outputs."""
    for name, source in sources.items():
        for consumer in list(part.input(name).get_target_inputs()):
            consumer.replace_source_output(source)
    return [result.input_value(0) for result in part.get_results()]


def set_metadata(model: Any, metadata: Metadata) -> None:
    """Put metadata into an `openvino.Model`, in place of what it carried."""
    model.set_rt_info(metadata.model_dump_json(), [METADATA_KEY, "metadata"])


def save_openvino(model: Any, file: Path) -> None:
    """Write the .xml file, its .bin and their checksums; weights stay in float32."""
    import_openvino("exporting to OpenVINO").save_model(model, file, compress_to_fp16=False)
    write_manifest(file)


# ---- ONNX


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
    examples = dict(zip(("planes", "categories"), _examples(model)[: 1 + several], strict=False))
    program = _quietly(
        lambda: torch.onnx.export(
            _Whole(model), tuple(examples.values()), dynamo=True, verbose=False,
            dynamic_shapes={name: {0: batch} for name in examples},
            input_names=list(examples), output_names=["maps", "scores", "chosen"][: 2 + several],
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
