"""Asks a server what Triton's own client for HTTP asks: triton_client.py HOST:PORT VERSION [strings]

The server must have the classifier `magika` at VERSION, and with `strings` a model
`words` that gives back two strings. Exits with 1 at the first answer that is not as the client's documentation says.
"""

import sys

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

NAME = "magika"


def refused(call, *parts):
    """What a call is refused with, which must hold all `parts`."""
    try:
        call()
    except InferenceServerException as error:
        for part in parts:
            assert part in str(error), f"{part!r} is not in {error}"
        return
    raise AssertionError(f"nothing was refused; wanted {parts}")


def health_and_metadata(client, version):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(NAME) and client.is_model_ready(NAME, version)
    assert not client.is_model_ready("unknown") and not client.is_model_ready(NAME, "9")
    server = client.get_server_metadata()
    assert server["name"] == "espalier-agent" and "binary_tensor_data" in server["extensions"], server
    model = client.get_model_metadata(NAME, version)
    assert model["versions"] == [version], model
    assert model["inputs"] == [{"name": "bytes", "datatype": "INT32", "shape": [-1, 2048]}], model
    assert model["outputs"] == [{"name": "target_label", "datatype": "FP32", "shape": [-1, 214]}], model
    config = client.get_model_config(NAME)
    assert config["name"] == NAME and config["max_batch_size"] == 0, config
    assert config["input"] == [{"name": "bytes", "data_type": "TYPE_INT32", "dims": [-1, 2048]}], config
    assert config["output"][0]["data_type"] == "TYPE_FP32", config


def repository(client, version):
    index = client.get_model_repository_index()
    assert {"name": NAME, "version": version, "state": "READY", "reason": ""} in index, index
    refused(lambda: client.load_model(NAME), "the agent installs bundles")
    refused(lambda: client.unload_model(NAME), "the agent installs bundles")
    refused(lambda: client.get_trace_settings(NAME), "no such endpoint")
    refused(lambda: client.register_system_shared_memory("a", "/a", 8), "no such endpoint")


def ask(client, samples, binary_in=True, binary_out=True, **more):
    given = InferInput("bytes", list(samples.shape), "INT32")
    given.set_data_from_numpy(samples, binary_data=binary_in)
    wanted = InferRequestedOutput("target_label", binary_data=binary_out)
    return client.infer(NAME, [given], outputs=[wanted], **more)


def inference(client, version):
    random = np.random.default_rng(7)
    samples = random.integers(0, 257, (3, 2048), dtype=np.int32)
    first = ask(client, samples, request_id="seven")
    answer = first.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (NAME, version, "seven"), answer
    scores = first.as_numpy("target_label")
    assert scores.shape == (3, 214) and scores.dtype == np.float32
    assert np.allclose(scores.sum(axis=1), 1.0, atol=1e-3)
    for binary_in in (True, False):
        for binary_out in (True, False):
            again = ask(client, samples, binary_in, binary_out).as_numpy("target_label")
            assert np.array_equal(again, scores), "JSON and bytes differ"
    for coding in ("gzip", "deflate"):
        packed = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
        again = ask(client, samples, **packed)
        assert np.array_equal(again.as_numpy("target_label"), scores), coding
        again = ask(client, samples, False, False, **packed)
        assert np.array_equal(again.as_numpy("target_label"), scores), coding
    given = InferInput("bytes", [3, 2048], "INT32").set_data_from_numpy(samples)
    everything = client.infer(NAME, [given], model_version=version, timeout=60_000_000, priority=1)
    assert np.array_equal(everything.as_numpy("target_label"), scores), "without asking for outputs"
    pending = [client.async_infer(NAME, [given]) for _ in range(8)]
    assert all(np.array_equal(p.get_result().as_numpy("target_label"), scores) for p in pending)
    statistics = client.get_inference_statistics(NAME)["model_stats"][0]
    assert statistics["inference_count"] >= 18, statistics
    assert statistics["inference_stats"]["compute_infer"]["ns"] > 0, statistics
    assert client.get_inference_statistics()["model_stats"], "of all models"


def refusals(client):
    narrow = np.zeros((1, 7), dtype=np.int32)
    refused(lambda: ask(client, narrow), "bytes", "2048", "7")
    given = InferInput("bytes", [1, 2048], "INT32").set_data_from_numpy(np.zeros((1, 2048), dtype=np.int32))
    classes = InferRequestedOutput("target_label", class_count=3)
    refused(lambda: client.infer(NAME, [given], outputs=[classes]), "classification")
    other = InferRequestedOutput("nothing")
    refused(lambda: client.infer(NAME, [given], outputs=[other]), "nothing", "target_label")
    refused(lambda: client.infer("unknown", [given]), "unknown")
    refused(lambda: client.infer(NAME, [given], model_version="9"), "no version `9`")
    floats = InferInput("bytes", [1, 2048], "FP32").set_data_from_numpy(np.zeros((1, 2048), dtype=np.float32))
    refused(lambda: client.infer(NAME, [floats]), "INT32", "FP32")


def strings(client):
    metadata = client.get_model_metadata("words")
    assert metadata["inputs"] == [{"name": "x", "datatype": "BYTES", "shape": [2]}], metadata
    assert client.get_model_config("words")["input"][0]["data_type"] == "TYPE_STRING"
    for words in (["Grüße", "\n\"\\"], ["", "x" * 5000]):
        for binary_in in (True, False):
            for binary_out in (True, False):
                given = InferInput("x", [2], "BYTES")
                given.set_data_from_numpy(np.array(words, dtype=object), binary_data=binary_in)
                wanted = InferRequestedOutput("y", binary_data=binary_out)
                found = client.infer("words", [given], outputs=[wanted]).as_numpy("y")
                found = [word if isinstance(word, str) else word.decode() for word in found]
                assert found == words, found
    broken = InferInput("x", [2], "BYTES")
    broken.set_data_from_numpy(np.array([b"\xff", b""], dtype=object))
    refused(lambda: client.infer("words", [broken]), "element 0 is not UTF-8")


def main():
    address, version, *more = sys.argv[1:]
    client = InferenceServerClient(address, concurrency=4, network_timeout=120.0, connection_timeout=120.0)
    health_and_metadata(client, version)
    repository(client, version)
    inference(client, version)
    refusals(client)
    if more == ["strings"]:
        strings(client)
    client.close()
    print("as documented")


if __name__ == "__main__":
    main()
