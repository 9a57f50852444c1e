"""Fixtures of the end-to-end tests: generated stubs, a tiny model, the real model, running clusters."""

import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import cluster as cluster_module

REAL_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def api(tmp_path_factory):
    """The generated modules of metattn.v1, made from proto/ as a client's author would make them."""
    out = tmp_path_factory.mktemp("stubs")
    protos = sorted((ROOT / "proto/metattn/v1").glob("*.proto"))
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"--python_out={out}",
                    f"--grpc_python_out={out}", *map(str, protos)], check=True)
    sys.path.insert(0, str(out))
    from metattn.v1 import inference_pb2, inference_pb2_grpc, jobs_pb2, jobs_pb2_grpc

    class Api:
        inference, inference_grpc = inference_pb2, inference_pb2_grpc
        jobs, jobs_grpc = jobs_pb2, jobs_pb2_grpc

    return Api


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A random model of 3 KV heads, so that 2 and 4 ranks are uneven; its context is 2,048 tokens."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    subprocess.run([cluster_module.BUILD / "bin/write_tiny_model", path], check=True)
    return path


@pytest.fixture(scope="session")
def tiny_controller(tiny_model):
    """A random controller for it: every mechanism wins somewhere beyond its window of 64 tokens."""
    path = tiny_model.with_name("controller")
    subprocess.run([cluster_module.BUILD / "bin/write_tiny_model", tiny_model.with_name("again.gguf"), path], check=True)
    return path


@pytest.fixture(scope="session")
def real_model():
    cache = pathlib.Path(os.environ.get("METATTN_CACHE") or pathlib.Path.home() / ".cache/metattn")
    path = pathlib.Path(os.environ.get("METATTN_TEST_MODEL") or cache / REAL_MODEL)
    if not path.exists():
        pytest.skip("the real model is not here; deploy/fetch-model.sh fetches it")
    return path


class Client:
    """The few calls that the tests make, with plain values in and out."""

    def __init__(self, api, channel):
        self.api = api
        self.inference = api.inference_grpc.InferenceServiceStub(channel)
        self.jobs = api.jobs_grpc.JobServiceStub(channel)

    def request(self, prompt, **sampling):
        request = self.api.inference.GenerateRequest()
        if isinstance(prompt, str):
            request.text = prompt
        elif isinstance(prompt, dict):
            for role, content in prompt.items():
                request.chat.messages.add(role=role, content=content)
        else:
            request.tokens.ids.extend(prompt)
        for name, value in sampling.items():
            if isinstance(value, list):
                getattr(request.sampling, name).extend(value)
            else:
                setattr(request.sampling, name, value)
        return request

    def stream(self, prompt, timeout=120, **sampling):
        return self.inference.Generate(self.request(prompt, **sampling), timeout=timeout)

    def generate(self, prompt, timeout=120, **sampling):
        """(token ids, text, finish) of one request."""
        ids, text, finish = [], "", None
        for message in self.stream(prompt, timeout, **sampling):
            ids += [token.id for token in message.tokens]
            text += message.text
            if message.HasField("finish"):
                finish = message.finish
        assert finish is not None, "the stream ended without its Finish"
        return ids, text, finish


@pytest.fixture
def start_cluster(tmp_path):
    """start_cluster(model, ranks, *flags): a healthy cluster; all are ended after the test."""
    running = []

    def start(model, ranks=1, *flags, wait=True):
        made = cluster_module.Cluster(tmp_path / f"cluster{len(running)}", model, ranks, flags)
        running.append(made)
        made.start()
        return made.wait_healthy() if wait else made

    yield start
    for made in running:
        made.stop()


@pytest.fixture(scope="module", params=[1, 2, 4], ids=lambda n: f"{n}ranks")
def tiny_cluster(request, tiny_model, tmp_path_factory):
    """One healthy cluster of the tiny model per rank count, shared by the tests of a module."""
    folder = tmp_path_factory.mktemp("tiny")
    with cluster_module.Cluster(folder, tiny_model, request.param) as running:
        yield running


@pytest.fixture
def tiny(api, tiny_cluster):
    return Client(api, tiny_cluster.channel)


@pytest.fixture
def client_of(api):
    return lambda running: Client(api, running.channel)
