"""Open Inference Protocol over HTTP, by its real client; tensors; what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

import fakes
from cdo_ad.errors import ConfigError
from cdo_ad.inference.detector import load
from cdo_ad.server.oip.tensors import Tensor, from_json, from_raw, text_tensor
from serving import Served, png, running

triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")


@pytest.fixture(scope="module")
def served(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running(tmp_path_factory.mktemp("server") / "state", tiny_run, auth=False) as found:
        found.service.serve_run(tiny_run, "other")
        yield found


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[object]:
    with triton.InferenceServerClient(served.host) as found:
        yield found


def image_input(images: np.ndarray, binary: bool = True) -> object:
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images, binary_data=binary)
    return tensor


def test_the_client_finds_server_and_models(client: object) -> None:
    assert client.is_server_live() and not client.is_server_ready()  # `other` came later
    client.load_model("other")
    assert client.is_server_ready()
    assert client.is_model_ready("tiles") and client.is_model_ready("tiles", "1")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("tiles", "1")
    assert metadata["name"] == "tiles" and metadata["versions"] == ["1"]
    assert {each["name"] for each in metadata["inputs"]} == {"image", "file", "category"}
    assert client.get_model_config("tiles")["max_batch_size"] == 0
    assert {each["name"] for each in client.get_model_repository_index()} == {"tiles", "other"}
    client.unload_model("other")
    client.load_model("other")
    assert client.is_model_ready("other")


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
def test_scores_and_maps_are_those_of_the_detector(
    client: object, tiny_run: Path, binary: bool, packed: str | None
) -> None:
    images = np.stack([fakes.make_image(i, kind, (64, 80))[0] for i, kind in enumerate(("good", "spot"))])
    outputs = [
        triton.InferRequestedOutput(name, binary_data=binary)
        for name in ("map", "score", "anomalous", "p_value", "sentence", "category", "regions", "uid")
    ]
    result = client.infer(
        "tiles", [image_input(images, binary)], outputs=outputs, request_id="7",
        request_compression_algorithm=packed, response_compression_algorithm=packed,
    )  # fmt: skip
    assert result.get_response()["id"] == "7" and result.get_response()["model_version"] == "1"
    detector = load(tiny_run, backend="torch", device="cpu")
    expected = [detector.predict(image) for image in images]
    np.testing.assert_allclose(result.as_numpy("score"), [p.score for p in expected], rtol=1e-5)
    np.testing.assert_allclose(result.as_numpy("map"), [p.anomaly_map for p in expected], rtol=1e-3, atol=1e-4)
    assert result.as_numpy("anomalous").tolist() == [p.anomalous for p in expected]
    assert [text.decode() if isinstance(text, bytes) else text for text in result.as_numpy("sentence")] == [
        p.sentence for p in expected
    ]


def test_files_categories_and_rates_are_taken(client: object) -> None:
    files = triton.InferInput("file", [2], "BYTES")
    files.set_data_from_numpy(np.array([png(1), png(2, size=(50, 60))], dtype=object))
    result = client.infer("tiles", [files], parameters={"rate": 0.5})
    assert result.as_numpy("score").shape == (2,)
    assert result.as_numpy("map") is None  # of two sizes
    strict = client.infer("tiles", [files], parameters={"rate": 0.08}).as_numpy("threshold")
    assert (strict > result.as_numpy("threshold")).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.infer("none", [image_input(np.zeros((1, 9, 9, 3), np.uint8))]), "there is no product 'none'"),
        (lambda c: c.infer("tiles", [image_input(np.zeros((1, 9, 9, 3), np.uint8))], "9"), "no version 9"),
        (lambda c: c.infer("tiles", [image_input(np.zeros((1, 9, 9, 3), np.uint8))], "x"), "'x' is no version"),
        (lambda c: c.infer("tiles", [image_input(np.zeros((1, 4, 9, 3), np.uint8))]), "too small"),
        (lambda c: c.infer("tiles", [image_input(np.zeros((1, 9, 9, 4), np.uint8))]), "N x H x W x 3"),
        (
            lambda c: c.infer(
                "tiles", [image_input(np.zeros((1, 9, 9, 3), np.uint8))], outputs=[triton.InferRequestedOutput("heat")]
            ),
            "no output 'heat'",
        ),
        (lambda c: c.get_model_metadata("none"), "there is no product 'none'"),
    ],
)
def test_errors_reach_the_client_in_words(client: object, call: object, words: str) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match=words):
        call(client)


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b"", {}, "JSON"),
        (b"[]", {}, "list of inputs"),
        (b"{}", {"Inference-Header-Content-Length": "9"}, "within the body"),
        (b'{"inputs": [{"name": "image"}]}', {}, "a name and a datatype"),
        (b'{"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1]}]}', {}, "no input 'x'"),
        (b'{"inputs": []}', {}, "give one of the inputs"),
        (b'{"inputs": [], "outputs": [1]}', {}, "an object with a name"),
        (b"nonsense", {"Content-Encoding": "gzip"}, "no gzip data"),
        (b"nonsense", {"Content-Encoding": "br"}, "not read here"),
        (
            b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1], '
            b'"parameters": {"binary_data_size": 99}}]}',
            {},
            "0 bytes are left",
        ),
    ],
)
def test_requests_that_are_none_are_refused(served: Served, body: bytes, headers: dict[str, str], words: str) -> None:
    answer = httpx.post(f"{served.address}/v2/models/tiles/infer", content=body, headers=headers)
    assert answer.status_code == 400 and words in answer.json()["error"]


def test_a_packed_bomb_is_not_unpacked(served: Served) -> None:
    import zlib

    answer = httpx.post(
        f"{served.address}/v2/models/tiles/infer", content=zlib.compress(bytes(100 * 2**20)),
        headers={"Content-Encoding": "deflate"},
    )  # fmt: skip
    assert answer.status_code == 400 and "larger than" in answer.json()["error"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.bool_, np.float16])
def test_tensors_go_both_ways(dtype: type) -> None:
    tensor = Tensor("a", np.arange(6).astype(dtype).reshape(2, 3))
    raw = from_raw("a", tensor.datatype, [2, 3], tensor.raw())
    plain = json.loads(json.dumps(tensor.to_json()))
    text = from_json("a", plain["datatype"], plain["shape"], plain["data"])
    for back in (raw, text):
        assert back.array.dtype == dtype and (back.array == tensor.array).all()


def test_texts_go_both_ways() -> None:
    tensor = text_tensor("a", ["", "ä", "long" * 100])
    assert from_raw("a", "BYTES", [3], tensor.raw()).array.tolist() == tensor.array.tolist()
    assert from_json("a", "BYTES", [3], tensor.to_json()["data"]).array.tolist() == tensor.array.tolist()


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("UINT8", [2], [1, 300]), ("UINT8", [2], [1]), ("UINT8", [-1], []), ("UINT8", [1], ["a"]), ("UINT8", "x", []),
        ("UINT8", [True], [1]), ("INT8", [1], [1.5]), ("WORDS", [1], [1]), ("BYTES", [1], [1]), ("UINT8", [1], None),
        ("UINT8", [2, 2], [[1], [2, 3]]),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_is_refused(datatype: str, shape: object, data: object) -> None:
    with pytest.raises(ConfigError, match="input 'a'"):
        from_json("a", datatype, shape, data)


@pytest.mark.parametrize("data", [b"", b"\x01\x00\x00\x00", b"\xff\xff\xff\xffa", b"\x01\x00\x00\x00ab"])
def test_texts_that_are_cut_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="do not hold 1 elements"):
        from_raw("a", "BYTES", [1], data)
