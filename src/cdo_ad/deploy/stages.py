"""Where the time of one image goes, engine by engine, and the yardstick that all are compared with."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from cdo_ad.bundle import Bundle
from cdo_ad.data.decode import decode_image
from cdo_ad.errors import needs_extra
from cdo_ad.inference.artifact import FILES, INT8_FILE
from cdo_ad.inference.engines.base import Categories, Output
from cdo_ad.inference.engines.openvino import OpenVinoEngine
from cdo_ad.inference.engines.torch import load_model
from cdo_ad.inference.maps import resize_map
from cdo_ad.progress import progress_bar

with needs_extra("train", "the benchmark, whose yardstick is torch"):
    import torch
    from scipy.ndimage import gaussian_filter
    from torch import Tensor
    from torch.nn import functional as F

    from cdo_ad.deploy.graph import Judge
    from cdo_ad.deploy.graph_openvino import STAGES
    from cdo_ad.method.branches import Branches
    from cdo_ad.method.discrepancy import discrepancies_plain, image_score
    from cdo_ad.method.model import AnomalyModel, Features
    from cdo_ad.method.preprocess import resize

__all__ = ["PlainEngine", "measure", "stages"]

Steps = dict[str, Callable[[], object]]
Milliseconds = dict[str, float]


class PlainEngine:
    """The straightforward PyTorch form of the method: NCHW memory, up-sampled features, one map after the other."""

    name = "torch-plain"

    def __init__(self, model: AnomalyModel) -> None:
        """Take a model of its own: it is put into NCHW memory."""
        self.model = model.to(memory_format=torch.contiguous_format).eval()

    def infer(self, images: npt.NDArray[np.uint8], categories: Categories | None = None) -> Output:
        """See `Engine.infer`."""
        with torch.inference_mode():
            planes = self.prepare(images)
            seen = self.features(planes)
            chosen = self.model.choose(seen.expert, None if categories is None else torch.from_numpy(categories))
            maps = self.maps(seen, chosen)
            return Output(maps.numpy(), image_score(maps, self.model.spec.score_top).numpy(), chosen.numpy())

    def prepare(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """(B, h, w, 3) uint8 to (B, 3, H, W) float at the input size."""
        planes = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().contiguous()
        return resize(planes, self.model.spec.image_size)

    def features(self, planes: Tensor) -> Features:
        """What the networks see."""
        normalized = self.model.normalize(planes)
        expert, apprentice = self.model.expert(normalized), self.model.apprentice
        return Features(planes, expert, discrepancies_plain(expert, apprentice(normalized)) if apprentice else [])

    def maps(self, seen: Features, chosen: Tensor) -> Tensor:
        """(B, H, W) anomaly maps, image by image."""
        found = []
        for i, number in enumerate(chosen.tolist()):
            own = self.model.branches(number)
            one = Features(
                seen.images[i : i + 1], [m[i : i + 1] for m in seen.expert], [m[i : i + 1] for m in seen.levels]
            )
            found.append(self.finish(own, list(own.maps(self.model.inputs(one)).values())))
        return torch.cat(found)

    def finish(self, branches: Branches, maps: Sequence[Tensor]) -> Tensor:
        """As `AnomalyModel.finish`: each map is up-sampled, their sum blurred."""
        size, sigma = self.model.spec.image_size, self.model.spec.blur_sigma
        total = sum(F.interpolate(m[:, None], size=size, mode="bilinear", align_corners=False)[0, 0] for m in maps)
        blurred = torch.from_numpy(gaussian_filter(np.asarray(total), sigma) if sigma > 0 else np.asarray(total))[None]
        return blurred if branches.plain else F.softplus(blurred - branches.offset + 1)


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


def stages(bundle: Bundle, jpeg: bytes, rounds: int = 10) -> dict[str, Milliseconds]:
    """Milliseconds of each stage of one image, medians.

    Args:
        bundle: a run.
        jpeg: the bytes of an image's file.
        rounds: measured.

    Returns:
        `all`: `decode_ms` and `to_image_size_ms` (the map, brought to the image's size), which all engines share. Then
        `resize_ms`, `networks_ms` (with normalisation), `branches_ms` (with the map) and `score_ms` of the engines
        `plain`, `torch` and, where they were exported, `openvino` and `openvino_int8`. These two also have `other_ms`:
        what OpenVINO spends between its nodes; they count normalisation with the resize.
    """
    image = decode_image(jpeg)
    small = np.zeros(bundle.config.image_size, np.float32)
    shared: Steps = {
        "decode_ms": lambda: decode_image(jpeg),
        "to_image_size_ms": lambda: resize_map(small, (image.shape[0], image.shape[1])),
    }
    found = {
        "all": _timed(shared, rounds),
        "plain": _plain(PlainEngine(load_model(bundle)), image[None], rounds),
        "torch": _torch(load_model(bundle), image[None], rounds),
    }
    for key, name in (("openvino", FILES["openvino"]), ("openvino_int8", INT8_FILE)):
        file = bundle.path / "export" / name
        if file.is_file() and find_spec("openvino") is not None:
            found[key] = _openvino(OpenVinoEngine(file, device="cpu", profile=True), image, rounds)
    return found


def _timed(steps: Steps, rounds: int) -> Milliseconds:
    times = measure(list(steps.values()), rounds)
    return {name: 1e3 * float(np.median(seconds)) for name, seconds in zip(steps, times, strict=True)}


def _plain(engine: PlainEngine, images: npt.NDArray[np.uint8], rounds: int) -> Milliseconds:
    with torch.inference_mode():
        planes = engine.prepare(images)
        seen = engine.features(planes)
        chosen = engine.model.choose(seen.expert)
        maps = engine.maps(seen, chosen)
        steps: Steps = {
            "resize_ms": lambda: engine.prepare(images),
            "networks_ms": lambda: engine.features(planes),
            "branches_ms": lambda: engine.maps(seen, chosen),
            "score_ms": lambda: image_score(maps, engine.model.spec.score_top),
        }
        return _timed(steps, rounds)


def _torch(model: AnomalyModel, images: npt.NDArray[np.uint8], rounds: int) -> Milliseconds:
    model = model.to(memory_format=torch.channels_last)
    judge, pixels = Judge(model), torch.from_numpy(np.ascontiguousarray(images))

    def networks() -> list[Tensor]:
        normalized = model.normalize(planes)
        apprentice = [] if model.apprentice is None else model.apprentice(normalized)
        return [*model.expert(normalized), *apprentice]

    with torch.inference_mode():
        planes = model.prepare(pixels)
        features = networks()
        maps = judge(planes, None, *features)[0]
        steps: Steps = {
            "resize_ms": lambda: model.prepare(pixels),
            "networks_ms": networks,
            "branches_ms": lambda: judge(planes, None, *features),
            "score_ms": lambda: image_score(maps, model.spec.score_top),
        }
        return _timed(steps, rounds)


def _openvino(engine: OpenVinoEngine, image: npt.NDArray[np.uint8], rounds: int) -> Milliseconds:
    """By OpenVINO's own times of the nodes, of the median run."""
    runs = []
    for turn in range(rounds + 2):
        start = time.perf_counter()
        nodes = engine.profiled(image[None])
        total = 1e3 * (time.perf_counter() - start)
        spent: defaultdict[str, float] = defaultdict(float)
        for name, _, milliseconds in nodes:
            stage = name.partition("/")[0]
            spent[f"{stage if stage in STAGES else 'other'}_ms"] += milliseconds
        spent["other_ms"] += max(0.0, total - sum(milliseconds for _, _, milliseconds in nodes))
        if turn >= 2:
            runs.append((total, spent))
    _, spent = sorted(runs, key=lambda each: each[0])[len(runs) // 2]
    return {f"{stage}_ms": spent[f"{stage}_ms"] for stage in (*STAGES, "other")}
