"""From a run folder to one verified model file: uint8 pictures of any size in, maps and scores out.

- One graph: resize (antialiased, the same as in training), normalisation, both networks, fused discrepancy, map with
  blur, score. Batch, height and width are dynamic.
- The networks' part has a fixed input size and is traced by torch; the resize is the engine's own operator where it has
  torch's antialiasing: `Resize` with antialias in ONNX Runtime, `Interpolate` in mode BILINEAR_PILLOW in OpenVINO
  (which would ignore the antialias flag of ONNX).
- The file is written under a temporary name, loaded again by its engine and compared with torch on real good pictures;
  it takes its name only when maps, scores and every decision agree.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.calibrate import ENGINE_TOLERANCE, Calibration
from cdo_ad.data.images import list_images, read_image
from cdo_ad.detector import read_ahead
from cdo_ad.errors import ConfigError, ExportError, ImageError, needs_extra
from cdo_ad.exported import FILES, METADATA_KEY, Metadata, load_runtime, seal
from cdo_ad.provenance import versions
from cdo_ad.runtime import Runtime, TorchRuntime, load_network

with needs_extra("train", "exporting a run"):
    import torch

    from cdo_ad.method.network import CdoNetwork

__all__ = ["MAP_TOLERANCE", "SCORE_TOLERANCE", "Agreement", "export", "verify"]

MAP_TOLERANCE = 1e-4
"""Largest difference of two maps, relative to the map's maximum."""
SCORE_TOLERANCE = ENGINE_TOLERANCE
"""Largest relative difference of two scores."""


@dataclass(frozen=True)
class Agreement:
    """How far an exported model is from its source."""

    pictures: int
    map_difference: float
    """Largest over the pictures, relative to the map's maximum."""
    score_difference: float
    """Largest over the pictures, relative."""
    decisions_changed: int
    worst: str
    """The picture of the largest score difference."""

    @property
    def holds(self) -> bool:
        """True when the exported model may be used in place of its source."""
        return (
            self.map_difference <= MAP_TOLERANCE
            and self.score_difference <= SCORE_TOLERANCE
            and self.decisions_changed == 0
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


def export(run: Path | str, to: str = "openvino", *, pictures: Path | None = None) -> tuple[Path, Agreement]:
    """Write `run`/export/model.xml (and .bin) or model.onnx, and prove that it gives the run's answers.

    Args:
        run: a run folder.
        to: `openvino` or `onnx`.
        pictures: a folder with good pictures to compare on; None for the run's own calibration pictures.

    Returns:
        The file, and how well it agrees. An older file of that name is replaced only by a verified one.

    Raises:
        BundleError: `run` is no complete run folder.
        ConfigError: another engine.
        ExportError: the exported model disagrees, cannot be made, or there is no picture to compare on.
        MissingExtraError: the engine or torch is not installed.
    """
    if to not in FILES:
        raise ConfigError(f"cannot export to {to!r}: choose from {', '.join(FILES)}")
    bundle = read_bundle(run)
    paths = comparison_pictures(bundle, pictures)
    network = load_network(bundle.config, bundle.model_file)
    metadata = describe(bundle, "fp32", bundle.calibration)
    build = write_openvino if to == "openvino" else write_onnx
    with staged(bundle.path / "export" / FILES[to]) as file:
        build(network, metadata, file)
        agreement = verify(TorchRuntime(network), load_runtime(file, device="cpu"), bundle.calibration, paths)
        if not agreement.holds:
            raise ExportError(
                f"the {to} model does not agree with torch, so no file was written: of {agreement.pictures} pictures "
                f"{agreement.decisions_changed} decisions differ, maps by up to {agreement.map_difference:.2e} and "
                f"scores by up to {agreement.score_difference:.2e} (at {agreement.worst}; allowed: 0, "
                f"{MAP_TOLERANCE:g}, {SCORE_TOLERANCE:g}); report this with the versions of torch and {to}"
            )
    return bundle.path / "export" / FILES[to], agreement


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield a temporary path for a model file; it and its weights take their names if the block ends without error."""
    target.parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".writing.", dir=target.parent))
    try:
        yield folder / target.name
        # weights first: at every moment the model file either fits its weights or is refused by its seal
        for file in sorted(folder.iterdir()):
            file.replace(target.parent / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not any(target.parent.iterdir()):
            target.parent.rmdir()


def comparison_pictures(bundle: Bundle, folder: Path | None) -> list[Path]:
    """The good pictures to compare on: those of a folder, or the run's calibration pictures that are still there."""
    if folder is not None:
        found = list_images(folder, recursive=True)
        where = str(folder)
    else:
        found = [path for path in bundle.calibration_paths if path.is_file()]
        where = f"the run's calibration pictures in {bundle.data_root}"
    if not found:
        raise ExportError(
            f"{where}: no picture is there, and an export is not trusted without: give  --pictures FOLDER  with good "
            "pictures of this product"
        )
    return found


def describe(bundle: Bundle, precision: str, calibration: Calibration) -> Metadata:
    """What goes into the file: all of the bundle's JSON but the names and the place of the pictures."""
    data = bundle.provenance["data"]
    slim = {"root": "", "category": data["category"], "fingerprint": data["fingerprint"], "fit": [], "calibration": []}
    # the source revision of the run stays; the device does not matter to an exported model
    provenance = {**bundle.provenance, "data": slim, "exported_with": versions()}
    return Metadata(precision, bundle.config, calibration, provenance)


def verify(source: Runtime, exported: Runtime, calibration: Calibration, paths: Sequence[Path]) -> Agreement:
    """Compare two engines on pictures, on an odd-sized and an enlarged copy of the first, and on a batch of two.

    Args:
        source: the reference.
        exported: the engine to be judged.
        calibration: decides for both.
        paths: picture files; at least one.

    Raises:
        ImageError: a picture that cannot be read.
    """
    map_difference, score_difference, changed, worst, count = 0.0, 0.0, 0, "", 0
    for name, batch in _batches(paths):
        maps, scores = source.infer(batch)
        other_maps, other_scores = exported.infer(batch)
        if other_maps.shape != maps.shape or not np.isfinite(other_maps).all():
            return Agreement(count, float("inf"), float("inf"), changed, name)
        count += len(batch)
        scale = maps.max(axis=(1, 2), keepdims=True) + np.float32(1e-12)
        map_difference = max(map_difference, float((np.abs(maps - other_maps) / scale).max()))
        difference = float((np.abs(scores - other_scores) / (np.abs(scores) + np.float32(1e-12))).max())
        if difference >= score_difference:
            score_difference, worst = difference, name
        pairs = zip(scores, other_scores, strict=True)
        changed += sum(calibration.decide(float(a)) != calibration.decide(float(b)) for a, b in pairs)
    return Agreement(count, map_difference, score_difference, changed, worst)


def _batches(paths: Sequence[Path]) -> Any:
    """(name, (B, H, W, 3) uint8) to compare on; see `verify`."""
    first: npt.NDArray[np.uint8] = read_image(paths[0])
    odd = first[: max(8, first.shape[0] * 2 // 3) | 1, : max(8, first.shape[1] // 2) | 1]
    yield f"an odd-sized part of {paths[0]}", odd[None]
    yield f"{paths[0]} enlarged", first.repeat(3, axis=0).repeat(2, axis=1)[None]
    yield f"{paths[0]} and its mirror image", np.stack([first, first[:, ::-1]])
    for path, picture in read_ahead(paths):
        if isinstance(picture, ImageError):
            raise picture
        yield str(path), picture[None]


class _Core(torch.nn.Module):
    """The part behind the resize: (B, 3, H, W) float pictures in 0..255 at the networks' size to maps and scores."""

    def __init__(self, network: CdoNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps, scores = self.network(images)
        return maps, scores


def _prepare(network: CdoNetwork) -> tuple[_Core, torch.Tensor]:
    core = _Core(network.cpu().eval())
    example = torch.zeros(2, 3, *network.image_size)
    with torch.no_grad():
        core(example)  # fills the cache of constant matrices, which must not be made while tracing
    return core, example


def _quietly(function: Callable[[], Any]) -> Any:
    """Tracers warn of Python values that become constants, which is what is wanted here."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return function()


def openvino_model(network: CdoNetwork, metadata: Metadata) -> Any:
    """The whole graph, metadata inside, as an `openvino.Model`."""
    with needs_extra("runtime", "exporting to OpenVINO"):
        import openvino as ov
        from openvino.preprocess import PrePostProcessor, ResizeAlgorithm
    core, example = _prepare(network)
    height, width = network.image_size

    def convert() -> Any:
        traced = torch.jit.trace(core, example, check_trace=False)  # type: ignore[no-untyped-call]
        return ov.convert_model(traced, example_input=example, input=[-1, 3, height, width])

    steps = PrePostProcessor(_quietly(convert))
    picture = steps.input()
    picture.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC")).set_spatial_dynamic_shape()
    picture.preprocess().convert_element_type(ov.Type.f32).resize(ResizeAlgorithm.RESIZE_BILINEAR_PILLOW)
    picture.model().set_layout(ov.Layout("NCHW"))
    model = steps.build()
    for output, name in zip(model.outputs, ("maps", "scores"), strict=True):
        output.get_tensor().set_names({name})
    model.inputs[0].get_tensor().set_names({"pictures"})
    model.set_rt_info(metadata.to_json(), [METADATA_KEY, "metadata"])
    return model


def write_openvino(network: CdoNetwork, metadata: Metadata, file: Path) -> None:
    """Write the .xml file, sealed, and its .bin."""
    save_openvino(openvino_model(network, metadata), file)


def save_openvino(model: Any, file: Path) -> None:
    """Save and seal; weights stay in float32."""
    import openvino as ov

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
            input_names=["images"],
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
        helper.make_node("Cast", ["pictures"], ["pictures_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pictures_float"], ["pictures_planes"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "Resize",
            ["pictures_planes", "", "", "network_size"],
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
    graph.input.append(helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["batch", "height", "width", 3]))
    return model
