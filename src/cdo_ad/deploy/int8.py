"""int8: a quantised OpenVINO model that keeps the quality and the promised false-alarm rate, or none.

- Only layers of the networks are quantised. Normalisation, branches, map and score stay in float32: they take
  differences of nearly equal numbers.
- Branches and thresholds are made anew with the features of the quantised networks, as a training makes them: each good
  image is scored by branches that have not seen it, so the promised rate holds for the int8 model too. Scores of the
  finished model on these images would be too small.
- Ranges are the means of the images' smallest and largest activations, of good images with and without white noise.
- Weights use half of the 8-bit range. Processors without VNNI add pairs of products in 16 bits, which saturates
  otherwise: the file would answer differently there.
- Layers go back to float32, those that disturb most first, until the features keep enough of their variance (NNCF's
  accuracy control). What that costs is then measured, see `cdo_ad.deploy.quality`; too much, and no file is written.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.calibration import Calibration
from cdo_ad.data.readers.layout import read_categories, read_dataset
from cdo_ad.deploy.export import describe, spread, staged
from cdo_ad.deploy.graph_openvino import Networks, openvino_model, openvino_networks, save_openvino, set_metadata
from cdo_ad.deploy.quality import Quality, Trial, labelled_metrics, synthetic_trial, trial_metrics
from cdo_ad.errors import DataError, ExportError, needs_extra
from cdo_ad.inference.artifact import INT8_FILE
from cdo_ad.inference.engines import load_export
from cdo_ad.inference.engines.openvino import import_openvino, openvino_core
from cdo_ad.inference.engines.torch import TorchEngine, load_model
from cdo_ad.progress import progress_bar
from cdo_ad.types import Float32Array, Sample

with needs_extra("train", "quantising a run"):
    import torch
    from torch import Tensor, nn

    from cdo_ad.data.defects import load_defects
    from cdo_ad.data.store import ImageStore
    from cdo_ad.method.model import AnomalyModel
    from cdo_ad.method.white_noise import image_seed, white_noise
    from cdo_ad.training.adapt import require_own_images
    from cdo_ad.training.material import Material, material_of
    from cdo_ad.training.postfit import fit_and_calibrate, fitted_spec, specify

__all__ = ["export_int8", "quantise"]

RANGE_IMAGES = 32
"""That the ranges of the activations are taken from, each with and without an anomaly."""
VARIANCE_LOST = 0.1
"""Share of the features' variance that quantised networks may lose, at any level."""
Sampled = tuple[Float32Array, list[Float32Array]]
"""(1, 3, H, W) normalised image, and the networks' maps of it in float32."""


def export_int8(run: Path | str, *, labelled: Path | None = None) -> tuple[Path, Quality]:
    """Write `run`/export/model_int8.xml (and .bin), fitted and calibrated anew, if it keeps the quality.

    Args:
        run: a run folder; its good images must still be where they were.
        labelled: a data set whose labelled test images judge it too.

    Returns:
        The file, and what int8 costs. An older file is replaced only by one that passes.

    Raises:
        BundleError: `run` is no complete run folder, or its images are gone. BusyError: another process is writing it.
        ConfigError: a run that looks at depth.
        DataError, ImageError: labelled images that cannot be used.
        ExportError: int8 loses too much.
        MissingExtraError: NNCF, OpenVINO or torch is not installed.
        OutputError: the file cannot be written.
    """
    bundle = read_bundle(run)
    bundle.require_images_alone("an exported model")
    samples = _labelled(bundle, labelled) if labelled is not None else []
    require_own_images(bundle)
    material = material_of(bundle)
    store = ImageStore(material.paths, bundle.config.image_size, tile=bundle.config.tile)
    source = load_model(bundle)
    networks, kept = quantise(openvino_networks(source), _normalized(source, store, bundle.config.seed))
    model, calibration = _fitted(bundle, networks, material, store)
    trial = synthetic_trial(store, material.numbers[store.source], bundle.config.seed)
    target = bundle.path / "export" / INT8_FILE
    with staged(target) as file:
        metadata = describe(bundle, "int8", fitted_spec(model), calibration)
        graph = openvino_model(model, metadata, networks)
        save_openvino(graph, file)
        quality = _quality(bundle, TorchEngine(source), load_export(file, device="cpu"), trial, samples, kept)
        if not quality.holds:
            raise ExportError(_refusal(quality))
        provenance = metadata.provenance.model_copy(update={"int8": quality.to_json()})
        set_metadata(graph, metadata.model_copy(update={"provenance": provenance}))
        save_openvino(graph, file)
    return target, quality


def _quality(
    bundle: Bundle, exact: TorchEngine, engine: Any, trial: Trial, samples: Sequence[Sample], kept: float
) -> Quality:
    sides = [(exact, bundle.calibration), (engine, engine.metadata.calibration)]
    fp32, int8 = (trial_metrics(*side, trial) for side in sides)
    labelled = None
    if samples:
        labelled = (labelled_metrics(*sides[0], samples), labelled_metrics(*sides[1], samples))
    return Quality(bundle.calibration.images, len(trial.images), fp32, int8, labelled, kept)


def _refusal(quality: Quality) -> str:
    found = [f"image AUROC {m.image_auroc:.4f}, pixel AP {m.ap:.4f}" for m in (quality.fp32, quality.int8)]
    text = f"float32 has {found[0]}, int8 {found[1]} on synthetic anomalies"
    if quality.labelled is not None:
        found = [f"image AUROC {m.image_auroc:.4f}, image AP {m.ap:.4f}" for m in quality.labelled]
        text += f"; float32 {found[0]}, int8 {found[1]} on the labelled images"
    return (
        f"int8 loses too much here, so no file was written: {text} (each may fall by "
        f"{quality.to_json()['allowed_fall']:g}); use the float32 model: export without  --int8"
    )


def _labelled(bundle: Bundle, data: Path) -> list[Sample]:
    several = len(bundle.model.names) > 1
    listed = read_categories(data, "auto") if several else [read_dataset(data, "auto", None)]
    samples = [
        s for own in listed for s in own if s.split == "test" and (not several or s.category in bundle.model.names)
    ]
    if len({s.anomalous for s in samples}) < 2:
        raise DataError(f"{data}: labelled images must be good and anomalous ones, in the data set's test part")
    return samples


# ---- fitting anew


class _Compiled(nn.Module):
    """A network of OpenVINO in the place of one of torch."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.compiled = openvino_core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def forward(self, normalized: Tensor) -> list[Tensor]:
        found = self.compiled(normalized.detach().cpu().contiguous().numpy())
        return [torch.from_numpy(found[i].copy()) for i in range(len(found))]


def _fitted(
    bundle: Bundle, networks: Networks, material: Material, store: ImageStore
) -> tuple[AnomalyModel, Calibration]:
    """A model whose networks are quantised, its branches and thresholds made with their features."""
    config = bundle.config
    model = AnomalyModel(specify(config, material, store)).eval()
    model.expert = _Compiled(networks.expert)  # type: ignore[assignment]
    if networks.apprentice is not None:
        model.apprentice = _Compiled(networks.apprentice)  # type: ignore[assignment]
    defects = load_defects(material.defects, config.image_size) if material.defects else None
    calibration = fit_and_calibrate(model, store, material, defects, config, material.taught(config))
    return model, calibration.model_copy(update={"weights_sha256": bundle.weights_sha256})


# ---- quantising


def _normalized(model: AnomalyModel, store: ImageStore, seed: int) -> list[Float32Array]:
    """(1, 3, H, W) good images as the networks get them and, in turns, with noise: anomalies stay inside the ranges."""
    places = [store.paths.index(path) for path in spread(store.paths, RANGE_IMAGES)]
    found = []
    for place in places:
        good = store[place][None]
        noisy, _ = white_noise(good, [image_seed(seed, 2**35, place)])
        found += [model.normalize(planes).contiguous().numpy() for planes in (good, noisy)]
    return found


def quantise(networks: Networks, images: Sequence[Float32Array]) -> tuple[Networks, float]:
    """Quantised copies of the networks, and the least share of a level's variance that they keep.

    Args:
        networks: in float32.
        images: (1, 3, H, W) normalised, for the ranges of the activations and to compare on.

    Raises:
        MissingExtraError: NNCF is not installed.
    """
    made = [None if each is None else _quantised(each, images) for each in networks]
    kept = [share for each in made if each is not None for share in (each[1],)]
    return Networks(*(None if each is None else each[0] for each in made)), min(kept)


def _quantised(network: Any, images: Sequence[Float32Array]) -> tuple[Any, float]:
    nncf, settings, restoring = _nncf(len(images))
    exact = openvino_core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    items: list[Sampled] = [(image, [m.copy() for m in exact(image).values()]) for image in images]
    # the first layer takes signed pixels, which processors without VNNI compute in float32 anyway
    first = next(node for node in network.get_ordered_ops() if node.get_type_name() == "Convolution")
    with _tamed(), progress_bar() as bar:
        bar.add_task("quantising", total=None, note="")
        found = nncf.quantize_with_accuracy_control(
            network.clone(),
            calibration_dataset=nncf.Dataset(items, lambda item: item[0]),
            validation_dataset=nncf.Dataset(items),
            validation_fn=lambda compiled, chosen: (_variance_kept(compiled, chosen), None),
            max_drop=VARIANCE_LOST,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(items),
            ignored_scope=nncf.IgnoredScope(names=[first.get_friendly_name()]),
            advanced_quantization_parameters=settings,
            advanced_accuracy_restorer_parameters=restoring,
        )
    quantised = openvino_core().compile_model(found, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return found, _variance_kept(quantised, items)


def _variance_kept(compiled: Any, items: Iterable[Sampled]) -> float:
    """1 - (mean squared error of the features) / (their variance), at the level where it is least."""
    error: dict[int, float] = {}
    variance: dict[int, float] = {}
    for image, expected in items:
        for level, (found, exact) in enumerate(zip(compiled(image).values(), expected, strict=True)):
            error[level] = error.get(level, 0.0) + float(np.square(found - exact).sum())
            around = exact - exact.mean(axis=(0, 2, 3), keepdims=True)
            variance[level] = variance.get(level, 0.0) + float(np.square(around).sum())
    return min(1 - error[level] / variance[level] for level in error)


def _nncf(images: int) -> tuple[Any, Any, Any]:
    """The module, and settings: weights in half of the range."""
    import_openvino()
    with needs_extra("export", "quantising a model"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nncf
        from nncf.quantization.advanced_parameters import OverflowFix
    nncf.set_log_level(logging.ERROR)
    settings = nncf.AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE)
    restoring = nncf.AdvancedAccuracyRestorerParameters(ranking_subset_size=images)
    return nncf, settings, restoring


@contextmanager
def _tamed() -> Iterator[None]:
    """NNCF draws bars on stdout, where our results go, and makes cores of its own, see `openvino_core`."""
    ov = import_openvino()
    its_own = ov.Core
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ov.Core = openvino_core
        try:
            yield
        finally:
            ov.Core = its_own
