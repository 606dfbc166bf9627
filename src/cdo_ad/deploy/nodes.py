"""Which part of an exported OpenVINO graph a node belongs to. The tracer leaves modules' names in the nodes' names."""

from __future__ import annotations

from typing import Any

__all__ = ["LAYERS", "NETWORKS", "owner", "stage_of_nodes"]

NETWORKS = ("expert", "apprentice")
"""Modules of `cdo_ad.method.network.CdoNetwork` that are networks."""
BRANCHES = ("__module.network.density", "__module.network.products")
"""How the names of nodes begin that belong to a density."""
LAYERS = ("Convolution", "GroupConvolution", "MatMul")
"""Types of the nodes that hold a network's weights."""


def owner(node: Any) -> str:
    """The module that made a node, e.g. `expert.body.blocks.0.0.bn1`; a node without a name is its consumer's."""
    while True:
        name = str(node.get_friendly_name())
        if name.startswith("__module."):
            return name.partition("/")[0].removeprefix("__module.network").lstrip(".")
        consumers = [target.get_node() for output in node.outputs() for target in output.get_target_inputs()]
        if not consumers:
            return ""
        node = min(consumers, key=lambda consumer: str(consumer.get_friendly_name()))


def stage_of_nodes(model: Any) -> dict[str, str]:
    """`resize` (and normalisation), `networks`, `discrepancy` (and density), `map` or `score` for each node's name.

    Args:
        model: an `openvino.Model` made by `cdo_ad.deploy.export`, whose outputs are maps and scores.
    """
    stages = {}
    seen_network = False
    for node in model.get_ordered_ops():
        if owner(node).partition(".")[0] in NETWORKS:
            stages[str(node.get_friendly_name())] = "networks"
            seen_network = True
        elif str(node.get_friendly_name()).startswith(BRANCHES):
            stages[str(node.get_friendly_name())] = "discrepancy"
        else:
            stages[str(node.get_friendly_name())] = "discrepancy" if seen_network else "resize"
    maps = model.output("maps").get_node().input_value(0).get_node()
    last = maps
    while last.get_type_name() == "MatMul":  # rows @ total @ columns
        stages[str(last.get_friendly_name())] = "map"
        inputs = [last.input_value(i).get_node() for i in range(2)]
        last = next((node for node in inputs if node.get_type_name() != "Constant"), maps)
    for name in _after(maps):
        stages[name] = "score"
    return stages


def _after(node: Any) -> list[str]:
    """Names of all nodes that follow a node."""
    names = []
    for output in node.outputs():
        for target in output.get_target_inputs():
            consumer = target.get_node()
            names += [str(consumer.get_friendly_name()), *_after(consumer)]
    return names
