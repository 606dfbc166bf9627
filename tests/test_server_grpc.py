"""Open Inference Protocol over gRPC, by its real client."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fakes
from cdo_ad.inference.detector import load
from cdo_ad.server.oip.messages import DESCRIPTORS
from serving import Served, png, running

triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
from tritonclient.utils import InferenceServerException  # noqa: E402


@pytest.fixture(scope="module")
def served(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running(tmp_path_factory.mktemp("server") / "state", tiny_run, grpc_port=0) as found:
        yield found


@pytest.fixture(scope="module")
def headers(served: Served) -> dict[str, str]:
    return {"authorization": f"Bearer {served.service.keys.create('grpc', 'operator')}"}


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[object]:
    with triton.InferenceServerClient(served.grpc) as found:
        yield found


def images_input(images: np.ndarray) -> object:
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return tensor


def test_the_client_finds_server_and_models(client: object, headers: dict[str, str]) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.get_server_metadata().name == "cdo-ad"
    assert client.is_model_ready("tiles", headers=headers)
    metadata = client.get_model_metadata("tiles", "1", headers=headers)
    assert list(metadata.versions) == ["1"] and [each.name for each in metadata.inputs] == ["image", "file", "category"]


def test_scores_and_maps_are_those_of_the_detector(client: object, headers: dict[str, str], tiny_run: Path) -> None:
    images = np.stack([fakes.make_image(i, kind, (64, 80))[0] for i, kind in enumerate(("good", "spot"))])
    result = client.infer("tiles", [images_input(images)], headers=headers, request_id="3", parameters={"rate": "0.5"})
    detector = load(tiny_run, backend="torch", device="cpu").at_rate(0.5)
    expected = [detector.predict(image) for image in images]
    np.testing.assert_allclose(result.as_numpy("score"), [p.score for p in expected], rtol=1e-5)
    np.testing.assert_allclose(result.as_numpy("map"), [p.anomaly_map for p in expected], rtol=1e-3, atol=1e-4)
    assert result.as_numpy("anomalous").tolist() == [p.anomalous for p in expected]
    assert result.as_numpy("sentence")[0].decode() == expected[0].sentence
    assert result.get_response().id == "3" and result.get_response().model_version == "1"


def test_files_and_chosen_outputs(client: object, headers: dict[str, str]) -> None:
    files = triton.InferInput("file", [1], "BYTES")
    files.set_data_from_numpy(np.array([png(1)], dtype=object))
    outputs = [triton.InferRequestedOutput("p_value"), triton.InferRequestedOutput("uid")]
    result = client.infer("tiles", [files], outputs=outputs, headers=headers)
    assert [each.name for each in result.get_response().outputs] == ["p_value", "uid"]


@pytest.mark.parametrize(
    ("name", "version", "keep", "code"),
    [
        ("tiles", "", False, "UNAUTHENTICATED"),
        ("none", "", True, "NOT_FOUND"),
        ("tiles", "8", True, "NOT_FOUND"),
        ("tiles", "x", True, "INVALID_ARGUMENT"),
    ],
)
def test_errors_have_codes(
    client: object, headers: dict[str, str], name: str, version: str, keep: bool, code: str
) -> None:
    image = images_input(np.zeros((1, 9, 9, 3), np.uint8))
    with pytest.raises(InferenceServerException) as caught:
        client.infer(name, [image], version, headers=headers if keep else None)
    assert code in caught.value.status()


def test_the_descriptors_are_those_of_the_proto(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    proto = DESCRIPTORS.with_suffix(".proto")
    shutil.copy(proto, tmp_path)
    words = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--descriptor_set_out=out", proto.name]
    subprocess.run(words, cwd=tmp_path, check=True)
    assert (tmp_path / "out").read_bytes() == DESCRIPTORS.read_bytes()
