"""OpenVINO: exported models on Intel and other CPUs, integrated GPUs and NPUs. Needs no torch."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cdo_ad.errors import BundleError, ConfigError, needs_extra
from cdo_ad.inference.artifact import METADATA_KEY, Metadata, check_manifest, first_line
from cdo_ad.inference.engines.base import Categories, Output

__all__ = ["OpenVinoEngine", "OpenVinoGraph", "import_openvino", "openvino_core"]


def import_openvino(purpose: str = "running an exported model with OpenVINO") -> Any:
    """The module `openvino`, without the telemetry that it and its tools would send: a line PC sends nothing.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: an import of it fails
    with needs_extra("runtime", purpose):
        import openvino
    return openvino


def openvino_core() -> Any:
    """The process's one `openvino.Core`, which lives as long as the process.

    Its CPU plug-in gives the thread a stack for signals and takes it back when the core goes. When two cores go in the
    order in which they came, the second brings back the stack of the first, which is gone: the next signal that Python
    handles (a child's end, Ctrl-C) then kills the process. One core that stays has none of that.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    with _core_lock:  # a cache alone would let two threads make one each
        return _core()


@cache
def _core() -> Any:
    return import_openvino().Core()


_core_lock = threading.Lock()


class OpenVinoGraph:
    """A graph of `cdo_ad.deploy`, compiled in float32 (int8 where it says so); may be called from several threads."""

    def __init__(
        self, graph: Any, target: str = "CPU", mode: str = "latency", profile: bool = False, threads: int | None = None
    ) -> None:
        """Compile an `openvino.Model` for a device of OpenVINO; arguments as in `OpenVinoEngine`."""
        # OpenVINO would pick bf16 by itself where the processor has it
        self._options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": mode.upper(), "PERF_COUNT": profile}
        if threads is not None and target == "CPU":
            self._options["INFERENCE_NUM_THREADS"] = threads
        self._target = target
        self.source = graph
        self._chooses = len(graph.inputs) > 1  # a model of several categories takes their numbers too
        # with one image all sizes behind the resize are known now, and not looked up node by node each time
        single = graph.clone()
        shapes = {0: [1, -1, -1, 3], **({1: [1]} if self._chooses else {})}
        single.reshape(shapes)
        self._single = self._compile(single)
        self._local = threading.local()
        self.name = f"openvino-{target.lower()}"

    def _compile(self, graph: Any) -> Any:
        return openvino_core().compile_model(graph, self._target, self._options)

    @cached_property
    def _several(self) -> Any:
        """Compiled for any number of images; made when it is first needed."""
        return self._compile(self.source)

    def _compiled(self, images: npt.NDArray[np.uint8]) -> Any:
        return self._single if len(images) == 1 else self._several

    def _inputs(self, images: npt.NDArray[np.uint8], categories: Categories | None) -> dict[int, Any]:
        inputs: dict[int, Any] = {0: np.ascontiguousarray(images)}
        if self._chooses:
            inputs[1] = np.full(len(images), -1, np.int64) if categories is None else categories
        return inputs

    def infer(self, images: npt.NDArray[np.uint8], categories: Categories | None = None) -> Output:
        """See `Engine.infer`."""
        requests = self._local.__dict__.setdefault("requests", {})
        compiled = self._compiled(images)
        if compiled not in requests:
            requests[compiled] = compiled.create_infer_request()
        result = requests[compiled].infer(self._inputs(images, categories))
        judged = result[2] if self._chooses else np.zeros(len(images), np.int64)
        return Output(result[0], result[1], judged)

    def profiled(self, images: npt.NDArray[np.uint8]) -> list[tuple[str, str, float]]:
        """Run the model; (name, type, milliseconds) of each node, where compiled with `profile`."""
        request = self._compiled(images).create_infer_request()
        request.infer(self._inputs(images, None))
        found = request.get_profiling_info()
        return [(node.node_name, node.node_type, node.real_time.total_seconds() * 1e3) for node in found]

    def infer_many(self, items: Iterable[tuple[npt.NDArray[np.uint8], int]]) -> Iterator[Output]:
        """See `infer_stream`; the next images are fetched while others are computed."""
        count = max(2, int(self._single.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))
        idle = [self._single.create_infer_request() for _ in range(count)]
        busy: deque[Any] = deque()
        for image, category in items:
            if not idle:
                idle.append(busy.popleft())
                yield self._finish(idle[-1])
            request = idle.pop()
            request.start_async(self._inputs(image[None], np.array([category], np.int64)))
            busy.append(request)
        for request in busy:
            yield self._finish(request)

    def _finish(self, request: Any) -> Output:
        request.wait()
        # copied: the request's memory is used again
        maps, scores = (np.array(request.get_output_tensor(i).data) for i in range(2))
        judged = np.array(request.get_output_tensor(2).data) if self._chooses else np.zeros(1, np.int64)
        return Output(maps, scores, judged)


class OpenVinoEngine(OpenVinoGraph):
    """An exported OpenVINO file."""

    def __init__(
        self,
        path: Path,
        *,
        device: str = "auto",
        mode: str = "latency",
        profile: bool = False,
        threads: int | None = None,
    ) -> None:
        """Read and compile a model.

        Args:
            path: the .xml file; its .bin and .xml.sha256 lie beside it.
            device: `auto` and `cpu` are the CPU; any other is a name of OpenVINO, e.g. `gpu`.
            mode: `latency` (all cores for one image) or `throughput` (several images side by side, `infer_many`).
            profile: let OpenVINO time each node, for `profiled`.
            threads: of the CPU; None for as many as there are cores.

        Raises:
            BundleError: a damaged file, or one that is no exported model.
            ConfigError: an unknown mode, or a device that is not there.
            MissingExtraError: OpenVINO is not installed.
        """
        if mode not in ("latency", "throughput"):
            raise ConfigError(f"unknown mode {mode!r}: choose latency or throughput")
        check_manifest(path)
        core = openvino_core()
        target = "CPU" if device in ("auto", "cpu") else device.upper()
        if target.partition(".")[0] not in {name.partition(".")[0] for name in core.available_devices}:
            raise ConfigError(f"OpenVINO has no device {device!r} here: it has {', '.join(core.available_devices)}")
        try:
            graph = core.read_model(path)
            text = str(graph.get_rt_info([METADATA_KEY, "metadata"]).value)
        except RuntimeError as error:
            raise BundleError(f"{path} is no exported model: {first_line(error)}") from error
        self.metadata = Metadata.read(text, path)
        super().__init__(graph, target, mode, profile, threads)
