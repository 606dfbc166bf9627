"""int8: a quantised OpenVINO model that keeps the quality, or none.

- Only layers of the two networks are quantised. Normalisation, discrepancy, density, map, blur and score stay in
  float32: they take differences of nearly equal numbers.
- Ranges are the smallest and largest activations of images the networks were trained on, with and without synthetic
  anomalies. The held-out images, from which the threshold follows, stay as new to the model as the next image.
- Weights use half of the 8-bit range. Processors without VNNI add pairs of products in 16 bits, which saturates
  otherwise: the file would answer differently there.
- The gate compares the quantised model with the float32 one, itself compared with torch, on held-out good images and
  on the same images with synthetic anomalies, strong and faint. Where it fails, the layers that disturb the map most
  stay in float32, more of them at each try; where that does not help, there is no int8 model.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.calibration import Calibration
from cdo_ad.config import BackgroundRule
from cdo_ad.deploy.export import comparison_images, describe, require, staged, verify
from cdo_ad.deploy.graph import openvino_model, save_openvino, set_metadata
from cdo_ad.deploy.nodes import LAYERS, NETWORKS, owner
from cdo_ad.errors import ExportError, needs_extra
from cdo_ad.evaluation.metrics import PixelMetrics, image_metrics
from cdo_ad.inference.artifact import INT8_FILE, OpenVinoGraph, import_openvino, load_runtime, openvino_core
from cdo_ad.inference.detector import calibration_scores
from cdo_ad.inference.engines.torch import Runtime, TorchRuntime, load_network
from cdo_ad.progress import progress_bar
from cdo_ad.types import Float32Array, MaskArray

with needs_extra("train", "quantising a run"):
    import torch

    from cdo_ad.data.store import load_all
    from cdo_ad.method.white_noise import image_seed, white_noise

__all__ = ["ALLOWED_FALL", "Metrics", "Quality", "Trial", "export_int8", "synthetic_trial"]

ALLOWED_FALL = 0.005
"""Image AUROC and pixel AP of the int8 model lie at most this much below those of float32, also for the faintest
anomalies alone."""
RANGE_IMAGES = 32  # that the ranges of the activations are taken from, each with and without an anomaly
TRIAL_IMAGES = 100  # good ones, of the gate
STRENGTHS = (1.0, 0.25, 0.1)  # of the synthetic anomalies, as shares of full white noise
RANKING_IMAGES = 8
MOST_GROUPS = 24  # of layers, which are kept in float32 together


@dataclass(frozen=True)
class Metrics:
    """What the gate looks at."""

    image_auroc: float
    pixel_ap: float
    by_strength: tuple[Metrics, ...] = ()
    """The same for the anomalies of each of `STRENGTHS` alone."""

    def fall(self, other: Metrics) -> float:
        """How far another's figures lie below these, at the most; negative where all are higher."""
        falls = [self.image_auroc - other.image_auroc, self.pixel_ap - other.pixel_ap]
        return max(falls + [a.fall(b) for a, b in zip(self.by_strength, other.by_strength, strict=True)])

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; the strengths by their names."""
        own = {"image_auroc": self.image_auroc, "pixel_ap": self.pixel_ap}
        if not self.by_strength:
            return own
        each = zip(STRENGTHS, self.by_strength, strict=True)
        return {**own, "by_strength": {str(strength): figures.to_json() for strength, figures in each}}


@dataclass(frozen=True)
class Quality:
    """The quantised model beside its source."""

    good: int
    """Held-out good images of the gate."""
    anomalous: int
    """Of the same images with synthetic anomalies."""
    fp32: Metrics
    int8: Metrics
    kept_fp32: tuple[str, ...]
    """Groups of layers, in both networks, that were not quantised."""
    groups: int
    """Groups of layers in all."""
    map_difference: float
    """Mean absolute difference of the maps, relative to their mean."""

    @property
    def fall(self) -> float:
        """The largest fall of a figure, of all anomalies and of each strength; negative where int8 is better in all."""
        return self.fp32.fall(self.int8)

    @property
    def holds(self) -> bool:
        """True when the quantised model may be offered."""
        return self.fall < ALLOWED_FALL

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        figures = {"fp32": self.fp32.to_json(), "int8": self.int8.to_json(), "fall": self.fall}
        return {**asdict(self), **figures, "kept_fp32": list(self.kept_fp32), "allowed_fall": ALLOWED_FALL}


@dataclass(frozen=True)
class Trial:
    """Good images, then the same with synthetic anomalies of each of `STRENGTHS`, at the networks' size."""

    images: npt.NDArray[np.uint8]
    """(N, H, W, 3) RGB."""
    masks: MaskArray
    """(N, H, W), True on the anomalies."""

    @property
    def labels(self) -> npt.NDArray[np.bool_]:
        """(N,), True for an image with an anomaly: some have drawn none and are good images."""
        return np.asarray(self.masks.any(axis=(1, 2)))


def export_int8(run: Path | str, *, images: Path | None = None) -> tuple[Path, Quality]:
    """Write `run`/export/model_int8.xml (and .bin), calibrated anew, if it keeps the quality.

    Args:
        run: a run folder.
        images: a folder with good images that were not trained on, for the gate and the thresholds; None for the
            run's own held-out images.

    Returns:
        The file and the figures of the gate. An older file is replaced only by one that passes.

    Raises:
        BundleError: `run` is no complete run folder.
        CalibrationError: too few images for the run's false-alarm rate.
        ExportError: no mixture of int8 and float32 keeps the quality, the float32 graph disagrees with torch, or there
            is no image to judge with.
        MissingExtraError: NNCF, OpenVINO or torch is not installed.
    """
    bundle = read_bundle(run)
    held_out = comparison_images(bundle, images)
    size = bundle.config.image_size
    network = load_network(bundle.config, bundle.model_file)
    model = openvino_model(network, describe(bundle, "fp32", bundle.calibration))
    trial = synthetic_trial(_spread(held_out, TRIAL_IMAGES), size, bundle.config.seed, bundle.config.background)
    ranges = range_images(_range_paths(bundle, held_out), bundle)
    source = OpenVinoGraph(model)
    require(verify(TorchRuntime(network), source, bundle.calibration, held_out), "openvino")
    chosen, quality = search(model, ranges, trial, source)
    target = bundle.path / "export" / INT8_FILE
    with staged(target) as file:
        # scores of the graph as it is read from the file: the one in memory may be compiled into another order of
        # operations, and where int8 rounds, the last bit of a pixel moves a score by more than that
        set_metadata(chosen, describe(bundle, "int8", bundle.calibration))
        save_openvino(chosen, file)
        scores = calibration_scores(load_runtime(file, device="cpu"), held_out)
        calibration = Calibration.fit(*scores, bundle.calibration.false_alarm_rate).at_least(network.least_threshold)
        metadata = describe(bundle, "int8", calibration)
        metadata.provenance["int8"] = quality.to_json()
        set_metadata(chosen, metadata)
        save_openvino(chosen, file)
        _check_saved(load_runtime(file, device="cpu"), calibration, held_out)
    return target, quality


def _check_saved(runtime: Runtime, calibration: Calibration, paths: Sequence[Path]) -> None:
    """The file, read again, gives the scores that its thresholds were made from."""
    again = Calibration.fit(*calibration_scores(runtime, paths), calibration.false_alarm_rate)
    same = [calibration.settle(a) == b for a, b in zip(again.scores, calibration.scores, strict=True)]
    if not all(same):
        raise ExportError(
            f"the int8 file, read again, gives other scores for {same.count(False)} of {len(same)} good images, so "
            "no file was written: report this with the versions of nncf and openvino"
        )


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of the paths, evenly spread."""
    step = max(1.0, len(paths) / count)
    return [paths[int(i * step)] for i in range(min(count, len(paths)))]


def _range_paths(bundle: Bundle, held_out: Sequence[Path]) -> list[Path]:
    """Images for the ranges: those trained on; held-out ones only where too few of them are left."""
    fit = [bundle.data_root / name for name in bundle.provenance["data"]["fit"]]
    paths = _spread([path for path in fit if path.is_file()], RANGE_IMAGES)
    return paths if len(paths) >= RANKING_IMAGES else [*paths, *_spread(held_out, RANGE_IMAGES)]


def range_images(paths: Sequence[Path], bundle: Bundle) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3): good images and, in turns, the same with white noise: an anomaly must not leave the ranges."""
    good = load_all(paths, bundle.config.image_size)
    seeds = [image_seed(bundle.config.seed, len(STRENGTHS), i) for i in range(len(good))]
    noisy, _ = white_noise(good, seeds, bundle.config.background)
    return _channels_last(torch.stack([good, noisy], dim=1).flatten(0, 1))


def _channels_last(images: torch.Tensor) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


def synthetic_trial(paths: Sequence[Path], size: tuple[int, int], seed: int, background: BackgroundRule) -> Trial:
    """Good images, and white noise on them at each of `STRENGTHS`; the same arguments give the same bytes.

    Raises:
        ImageError: images that cannot be read.
    """
    good = load_all(paths, size)
    images, masks = [good], [torch.zeros(len(good), *size, dtype=torch.bool)]
    for turn, strength in enumerate(STRENGTHS):
        noisy, mask = white_noise(good, [image_seed(seed, turn, i) for i in range(len(good))], background)
        images.append((good + strength * (noisy.float() - good)).round().to(torch.uint8))
        masks.append(mask)
    return Trial(_channels_last(torch.cat(images)), torch.cat(masks).numpy())


def judge(runtime: Runtime, trial: Trial) -> tuple[Metrics, Float32Array]:
    """Image AUROC and pixel AP of the trial, and the maps (N, H, W)."""
    results = [runtime.infer(image[None]) for image in trial.images]
    maps = np.concatenate([m for m, _ in results])
    scores = np.concatenate([s for _, s in results])

    def figures(chosen: npt.NDArray[np.intp]) -> tuple[float, float]:
        histogram = PixelMetrics()
        for i in chosen:
            histogram.update(maps[i], trial.masks[i])
        return image_metrics(trial.labels[chosen], scores[chosen])["auroc"], histogram.compute()["ap"]

    good, *strengths = np.split(np.arange(len(maps)), 1 + len(STRENGTHS))
    alone = tuple(Metrics(*figures(np.concatenate([good, each]))) for each in strengths)
    return Metrics(*figures(np.arange(len(maps))), alone), maps


def search(
    model: Any, ranges: npt.NDArray[np.uint8], trial: Trial, source: Runtime
) -> tuple[Any, Quality]:  # fmt: skip
    """The quantised model with the fewest groups of layers in float32 that passes the gate.

    Args:
        model: the float32 graph, an `openvino.Model`; left as it is.
        ranges: (N, H, W, 3) uint8 images for the ranges of the activations.
        trial: what the gate judges with.
        source: the float32 engine.

    Raises:
        ExportError: nothing passes; the message says what was found.
    """
    fp32, maps = judge(source, trial)
    groups = layer_groups(model)
    found = []
    with progress_bar() as bar:
        task = bar.add_task("quantising", total=None, note="")
        for kept in _candidates(model, groups, ranges, trial, maps):
            quantised = quantise(model, ranges, kept)
            int8, other = judge(OpenVinoGraph(quantised), trial)
            count = int(trial.labels.sum())
            difference = float(np.abs(other - maps).mean() / maps.mean())
            quality = Quality(
                len(trial.labels) - count, count, fp32, int8, tuple(kept), len(groups), difference
            )  # fmt: skip
            if quality.holds:
                return quantised, quality
            found.append(
                f"with {len(kept)} of {len(groups)} groups of layers in fp32 image AUROC {int8.image_auroc:.4f}, "
                f"pixel AP {int8.pixel_ap:.4f}, largest fall {quality.fall:.4f}"
            )
            bar.update(task, note=found[-1])
    raise ExportError(
        f"int8 loses too much here, so no file was written: fp32 has image AUROC {fp32.image_auroc:.4f}, pixel AP "
        f"{fp32.pixel_ap:.4f}; {'; '.join(found)} (each may fall by less than {ALLOWED_FALL:g}, with faint "
        "anomalies too); use the fp32 model: export without  --int8"
    )


def _candidates(
    model: Any, groups: Sequence[str], ranges: npt.NDArray[np.uint8], trial: Trial, maps: Float32Array
) -> Iterator[list[str]]:
    """Groups to keep in float32: the first, then also the 1, 2, 4, ... worst; they are ranked only when that is needed.

    The first layer takes signed pixels, which processors without VNNI compute in float32 anyway.
    """
    first, others = groups[:1], groups[1:]
    yield [*first]
    errors = {}
    for group in others:
        alone = quantise(model, ranges[:RANKING_IMAGES], [g for g in groups if g != group], rough=True)
        engine = OpenVinoGraph(alone)
        found = np.concatenate([engine.infer(image[None])[0] for image in trial.images[:RANKING_IMAGES]])
        errors[group] = float(np.abs(found - maps[:RANKING_IMAGES]).mean())
    worst = sorted(others, key=lambda group: -errors[group])
    count = 1
    while count < len(others):
        yield [*first, *worst[:count]]
        count *= 2


def quantise(model: Any, images: npt.NDArray[np.uint8], kept: Sequence[str], rough: bool = False) -> Any:
    """A quantised copy of the graph.

    Args:
        model: an `openvino.Model` made by `cdo_ad.deploy.export.openvino_model`.
        images: (N, H, W, 3) uint8, for the ranges of the activations.
        kept: groups of `layer_groups` that stay in float32.
        rough: leave the correction of biases out, for a ranking.
    """
    nncf, settings = _nncf()
    settings.disable_bias_correction = rough
    scope = nncf.IgnoredScope(names=_ignored(model, layer_groups(model), kept), validate=False)
    with _tamed():
        return nncf.quantize(
            model.clone(),
            nncf.Dataset([image[None] for image in images]),
            subset_size=len(images),
            ignored_scope=scope,
            advanced_parameters=settings,
        )


def layer_groups(model: Any) -> list[str]:
    """Names of the modules that hold the networks' layers, in order, the same for both networks.

    The modules' names are cut, all at the same depth, until there are at most `MOST_GROUPS`.
    """
    found = []
    for node in model.get_ordered_ops():
        network, _, path = owner(node).partition(".")
        if node.get_type_name() in LAYERS and network in NETWORKS:
            found.append(path.rpartition(".")[0] or path)
    depth = max((path.count(".") + 1 for path in found), default=0)
    while True:
        cut = list(dict.fromkeys(".".join(path.split(".")[:depth]) for path in found))
        if len(cut) <= MOST_GROUPS or depth <= 1:
            return cut
        depth -= 1


def _ignored(model: Any, groups: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Names of all nodes that must not be quantised: those outside the networks, and those of the kept groups."""
    names = []
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Constant", "Parameter", "Result"):
            continue
        network, _, path = owner(node).partition(".")
        if network not in NETWORKS or _group(path, groups) in kept:
            names.append(str(node.get_friendly_name()))
    return names


def _group(path: str, groups: Sequence[str]) -> str:
    """The innermost group that a module lies in; empty if none."""
    return max((g for g in groups if f"{path}.".startswith(f"{g}.")), key=len, default="")


def _nncf() -> tuple[Any, Any]:
    """The module, and the settings: weights in half of the range, activations from the smallest to the largest."""
    import_openvino()
    with needs_extra("export", "quantising a model"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nncf
        from nncf.quantization.advanced_parameters import OverflowFix
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    nncf.set_log_level(logging.ERROR)
    settings = nncf.AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE, activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
    )
    return nncf, settings


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
