"""What an image costs with the default recipe, in units of the paper's form: the same images and process, in turns.

    python benchmarks/cost.py [--rounds 30] [--image-size 256] [--json FILE]

Lite0 both times, at 256 x 256; the default recipe with all of its branches, of which a real run keeps some. Weights
are random and branches are fitted on few images: that makes it a little quicker than a run of many. A call takes one
uint8 image to map and score; every second call counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cdo_ad import recipes
from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.deploy.export import describe
from cdo_ad.deploy.graph_onnx import write_onnx
from cdo_ad.deploy.graph_openvino import openvino_model
from cdo_ad.deploy.stages import measure
from cdo_ad.inference.engines import load_export
from cdo_ad.inference.engines.openvino import OpenVinoGraph
from cdo_ad.inference.engines.torch import TorchEngine, load_model
from peers import random_run

RECIPES = ("paper_lite0", "lite0")


def main() -> None:
    """Build both, measure, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (1, *2 * (options.image_size,), 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        runs = {recipe: random_run(Path(folder) / recipe, recipes.get(recipe)) for recipe in RECIPES}
        found = {recipe: engines(read_bundle(runs[recipe])) for recipe in RECIPES}
        pairs = [(recipe, engine) for engine in found[RECIPES[0]] for recipe in RECIPES]
        seconds = measure(
            [lambda recipe=recipe, engine=engine: found[recipe][engine].infer(image) for recipe, engine in pairs],
            options.rounds,
        )
    rows = []
    for (_, engine), paper, ours in zip(pairs[::2], seconds[::2], seconds[1::2], strict=True):
        ratio = float(np.median(np.array(ours) / np.array(paper)))
        row = {"paper_ms": 1e3 * float(np.median(paper)), "ms": 1e3 * float(np.median(ours)), "ratio": ratio}
        rows.append({"engine": engine, **row})
        print("{engine:10} paper {paper_ms:6.1f} ms, default {ms:6.1f} ms, median ratio {ratio:.2f}".format(**rows[-1]))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def engines(bundle: Bundle) -> dict[str, Any]:
    """The torch form and the exported ones."""
    metadata = describe(bundle, "fp32", bundle.model, bundle.calibration)
    write_onnx(load_model(bundle), metadata, bundle.path / "model.onnx")
    return {
        "torch": TorchEngine(load_model(bundle)),
        "openvino": OpenVinoGraph(openvino_model(load_model(bundle), metadata)),
        "onnx": load_export(bundle.path / "model.onnx", device="cpu"),
    }


if __name__ == "__main__":
    main()
