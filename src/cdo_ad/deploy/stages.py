"""Where the time of one image goes, engine by engine, and the yardstick that all are compared with."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from cdo_ad.bundle import Bundle
from cdo_ad.data.decode import decode_image
from cdo_ad.deploy.nodes import LAYERS, stage_of_nodes
from cdo_ad.errors import needs_extra
from cdo_ad.inference.artifact import FILES, INT8_FILE, OpenVinoRuntime
from cdo_ad.inference.detector import resize_map
from cdo_ad.inference.engines.torch import load_network
from cdo_ad.progress import progress_bar
from cdo_ad.types import Float32Array

with needs_extra("train", "the benchmark, whose yardstick is torch"):
    import torch
    from scipy.ndimage import gaussian_filter
    from torch.nn import functional as F

    from cdo_ad.method.categories import UnifiedNetwork
    from cdo_ad.method.discrepancy import anomaly_map, discrepancies, discrepancies_plain, image_score
    from cdo_ad.method.network import CdoNetwork
    from cdo_ad.method.resize import resize

__all__ = ["PlainRuntime", "measure", "stages"]

Steps = dict[str, Callable[[], object]]


class PlainRuntime:
    """The straightforward PyTorch form of the method, which everything is compared with."""

    name = "torch-plain"

    def __init__(self, network: CdoNetwork) -> None:
        """Take a network of its own: it is put into NCHW memory."""
        self.network = network.to(memory_format=torch.contiguous_format).eval()

    def infer(self, images: npt.NDArray[np.uint8]) -> tuple[Float32Array, Float32Array]:
        """See `Runtime.infer`."""
        with torch.inference_mode():
            small = resize(
                torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().contiguous(),
                self.network.image_size,
            )
            maps = self.blur(self.upsample(self.branches(small, *self.network.features(small))))
            return maps, image_score(torch.from_numpy(maps), self.network.score_top).numpy()

    def branches(
        self, images: torch.Tensor, expert: list[torch.Tensor], apprentice: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """What `CdoNetwork.branches` gives, the disagreement in the plain form."""
        return list(self.network.weigh(discrepancies_plain(expert, apprentice), images, expert).values())

    def upsample(self, levels: Sequence[torch.Tensor]) -> Float32Array:
        """The sum of the levels' (B, h, w) maps at the image's size."""
        size = self.network.image_size
        total = sum(F.interpolate(d[:, None], size=size, mode="bilinear", align_corners=False) for d in levels)
        return np.asarray(total)[:, 0]

    def blur(self, maps: Float32Array) -> Float32Array:
        """(B, H, W) maps, each blurred."""
        sigma = self.network.blur_sigma
        return np.stack([gaussian_filter(m, sigma) for m in maps]) if sigma > 0 else maps


def measure(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Wall seconds of each call in each round; all calls take turns.

    Each is called twice and the second time counts: the engine before leaves caches that are full of its own weights,
    and threads that spin for a while, which on a line PC with one engine there are not.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=rounds, note="")
        for _ in range(rounds):
            for call, times in zip(calls, seconds, strict=True):
                call()
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            bar.update(task, advance=1)
    return seconds


def stages(bundle: Bundle, jpeg: bytes, rounds: int = 10) -> dict[str, Any]:
    """Milliseconds of each stage of one image, medians; networks and all behind take one image.

    Args:
        bundle: a run.
        jpeg: the bytes of an image's file.
        rounds: measured.

    Returns:
        `decode_ms` and `to_image_size_ms` (the map, brought to the image's size), which all engines share, and
        `resize_ms`, `networks_ms`, `discrepancy_ms`, `map_ms`, `blur_ms`, `score_ms`, `convolution_share` (and
        `density_ms` where there is one; OpenVINO counts it with the discrepancy) of torch in the fused form. The same
        for the plain form under `plain`, for the exported OpenVINO models under `openvino` and `openvino_int8`. In the
        fused form up-sampling and blur are one matrix product: `blur_ms` is 0 there.
    """
    image = decode_image(jpeg)
    size = (image.shape[0], image.shape[1])
    small = np.zeros(bundle.config.image_size, np.float32)
    shared: Steps = {
        "decode_ms": lambda: decode_image(jpeg),
        "to_image_size_ms": lambda: resize_map(small, size),
    }
    result: dict[str, Any] = {**_timed(shared, rounds), **_fused(bundle, image, rounds)}
    result["plain"] = _plain(bundle, image, rounds)
    for key, name in (("openvino", FILES["openvino"]), ("openvino_int8", INT8_FILE)):
        file = bundle.path / "export" / name
        if file.is_file() and find_spec("openvino") is not None:
            result[key] = _openvino(OpenVinoRuntime(file, device="cpu", profile=True), image, rounds)
    return result


def _timed(steps: Steps, rounds: int) -> dict[str, float]:
    times = measure(list(steps.values()), rounds)
    return {name: 1e3 * float(np.median(seconds)) for name, seconds in zip(steps, times, strict=True)}


def _planes(image: npt.NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(image.copy())[None].permute(0, 3, 1, 2)


def _density(network: CdoNetwork, images: torch.Tensor, expert: list[torch.Tensor]) -> Steps:
    """The step `density_ms`, where the networks have one; of several products' that of the image's own."""
    if isinstance(network, UnifiedNetwork):
        network = network.members()[int(network.which(expert)[0])]
    density = network.density
    return {} if density is None else {"density_ms": lambda: density(images, expert)}


def _fused(bundle: Bundle, image: npt.NDArray[np.uint8], rounds: int) -> dict[str, float]:
    network = load_network(bundle.config, bundle.model_file).to(memory_format=torch.channels_last)
    size, sigma = network.image_size, network.blur_sigma
    images = _planes(image)
    with torch.inference_mode():
        small = resize(images.float(), size).contiguous(memory_format=torch.channels_last)
        features = network.features(small)
        levels = list(network.branches(small).values())
        maps = anomaly_map(levels, size, sigma)
        steps: Steps = {
            "resize_ms": lambda: resize(images.float(), size),
            "networks_ms": lambda: network.features(small),
            "discrepancy_ms": lambda: discrepancies(*features),
            "map_ms": lambda: anomaly_map(levels, size, sigma),
            "score_ms": lambda: image_score(maps, network.score_top),
            **_density(network, small, features[0]),
        }
        found = _timed(steps, rounds)
        return {**found, "blur_ms": 0.0, "convolution_share": _convolution_share(network, small, found)}


def _plain(bundle: Bundle, image: npt.NDArray[np.uint8], rounds: int) -> dict[str, float]:
    plain = PlainRuntime(load_network(bundle.config, bundle.model_file))
    network = plain.network
    images = _planes(image)
    with torch.inference_mode():
        small = resize(images.float().contiguous(), network.image_size)
        features = network.features(small)
        levels = plain.branches(small, *features)
        maps = plain.upsample(levels)
        blurred = torch.from_numpy(plain.blur(maps))
        steps: Steps = {
            "resize_ms": lambda: resize(images.float().contiguous(), network.image_size),
            "networks_ms": lambda: network.features(small),
            "discrepancy_ms": lambda: discrepancies_plain(*features),
            "map_ms": lambda: plain.upsample(levels),
            "blur_ms": lambda: plain.blur(maps),
            "score_ms": lambda: image_score(blurred, network.score_top),
            **_density(network, small, features[0]),
        }
        found = _timed(steps, rounds)
        return {**found, "convolution_share": _convolution_share(network, small, found)}


def _convolution_share(network: CdoNetwork, images: torch.Tensor, found: dict[str, float], rounds: int = 3) -> float:
    """The convolutions' share of all stages' time; they are timed one by one where they are called."""
    spent = 0.0
    start = 0.0

    def before(*_: object) -> None:
        nonlocal start
        start = time.perf_counter()

    def behind(*_: object) -> None:
        nonlocal spent
        spent += time.perf_counter() - start

    layers = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    hooks = [hook for m in layers for hook in (m.register_forward_pre_hook(before), m.register_forward_hook(behind))]
    total = time.perf_counter()
    for _ in range(rounds):
        network.features(images)
    total = time.perf_counter() - total
    for hook in hooks:
        hook.remove()
    return spent / total * found["networks_ms"] / sum(found.values())


def _openvino(runtime: OpenVinoRuntime, image: npt.NDArray[np.uint8], rounds: int) -> dict[str, float]:
    """By OpenVINO's own times of the nodes; `other_ms` is what it spends between them."""
    stage = stage_of_nodes(runtime.source)
    runs = []
    for turn in range(rounds + 2):
        start = time.perf_counter()
        nodes = runtime.profiled(image[None])
        total = 1e3 * (time.perf_counter() - start)
        spent: dict[str, float] = defaultdict(float)
        for name, kind, milliseconds in nodes:
            spent[f"{stage.get(name, 'other')}_ms"] += milliseconds
            spent["convolutions_ms"] += milliseconds if kind in LAYERS[:2] else 0
        spent["other_ms"] += max(0.0, total - sum(milliseconds for _, _, milliseconds in nodes))
        if turn >= 2:
            runs.append((total, spent))
    _, spent = sorted(runs, key=lambda each: each[0])[len(runs) // 2]
    names = ("resize_ms", "networks_ms", "discrepancy_ms", "map_ms", "score_ms", "other_ms")
    share = spent["convolutions_ms"] / sum(spent[name] for name in names)
    return {**{name: spent[name] for name in names}, "blur_ms": 0.0, "convolution_share": share}
