"""The graph of an exported model for OpenVINO: uint8 images of any size in, maps and scores out.

It is put together from parts that torch traces one by one, so that int8 can exchange the networks alone. The resize in
front of them is `cdo_ad.deploy.resize`: OpenVINO ignores the antialias flag of ONNX.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cdo_ad.deploy.graph import Judge, Network, Normalize, Score, examples, quietly
from cdo_ad.deploy.resize import resized
from cdo_ad.errors import needs_extra
from cdo_ad.inference.artifact import METADATA_KEY, Metadata, write_manifest
from cdo_ad.inference.engines.openvino import import_openvino

with needs_extra("train", "exporting a run"):
    import torch
    from torch import Tensor, nn

    from cdo_ad.method.backbone import Backbone
    from cdo_ad.method.model import AnomalyModel

__all__ = ["STAGES", "Networks", "openvino_model", "openvino_networks", "save_openvino", "set_metadata"]

STAGES = ("resize", "networks", "branches", "score")
"""The names of a graph's nodes begin with one of these and a slash; `branches` makes the map too."""


class Networks(NamedTuple):
    """The networks as an `openvino.Model` each: (B, 3, H, W) normalised images to three maps."""

    expert: Any
    apprentice: Any | None


def openvino_networks(model: AnomalyModel) -> Networks:
    """The networks of a model in float32."""
    planes, _ = examples(model)

    def network(backbone: Backbone, name: str) -> Any:
        return _traced(Network(backbone), f"networks/{name}.", normalized=planes)

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
    planes, numbers = examples(model)
    networks = networks or openvino_networks(model)
    images = op.parameter(ov.PartialShape([-1, -1, -1, 3]), np.uint8, "images")
    categories = op.parameter(ov.PartialShape([-1]), np.int64, "categories")
    small = _named(ov.Model([op.result(resized(images, model.spec.image_size))], [images], "resize"), "resize/")
    front = small.get_results()[0].input_value(0)
    (normalized,) = _behind(_traced(Normalize(model), "resize/normalize.", planes=planes), planes=front)
    features = [o for each in networks if each is not None for o in _behind(each.clone(), normalized=normalized)]
    with torch.no_grad():
        shapes = [m for each in (model.expert, model.apprentice) if each is not None for m in each(planes)]
    named = {f"features{i}": feature for i, feature in enumerate(features)}
    judge = _traced(
        Judge(model), "branches/", planes=planes, categories=numbers,
        **{name: m for name, m in zip(named, shapes, strict=True)},
    )  # fmt: skip
    maps, *chosen = _behind(judge, planes=front, categories=categories.output(0), **named)
    (scores,) = _behind(
        _traced(Score(model.spec.score_top), "score/", maps=torch.zeros(2, *model.spec.image_size)), maps=maps
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

    found = quietly(convert)
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
