"""A real server under deploy/launch.sh, for tests: start, wait for health, signal, read its log and metrics."""

import itertools
import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("METATTN_BUILD", ROOT / "build/release"))


FIRST_PORT, PORT_COUNT = 20000, 10000
PORTS = itertools.cycle(range(FIRST_PORT, FIRST_PORT + PORT_COUNT))  # below those that Linux gives to connections and to Open MPI meanwhile
for _ in range(os.getpid() % PORT_COUNT):
    next(PORTS)


def free_port():
    """One that nobody listens on, and that was not handed out lately."""
    for _ in range(PORT_COUNT):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := next(PORTS)))
                return port
            except OSError:
                continue
    raise RuntimeError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORT_COUNT - 1} is free on 127.0.0.1")


def processes_of(pids):
    """Those of `pids` that still run (zombies do not count)."""
    running = []
    for pid in pids:
        try:
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            running.append(pid)
    return running


class Cluster:
    """`metattn serve` on some ranks. Use as a context manager; leaving it ends every process."""

    def __init__(self, folder, model, ranks=1, flags=(), launch=(), program=BUILD / "metattn", **ports):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ranks, self.program = ranks, pathlib.Path(program)
        self.grpc_port = ports.get("grpc_port") or free_port()
        self.metrics_port = ports.get("metrics_port") or free_port()
        self.address = f"127.0.0.1:{self.grpc_port}"
        self.pid_file = self.folder / "rank0.pid"
        self.log_path = self.folder / "server.log"
        self.command = [
            ROOT / "deploy/launch.sh", "-n", ranks, "--pid-file", self.pid_file, *launch,
            self.program, "serve", "--model", model, "--grpc-port", self.grpc_port,
            "--metrics-port", self.metrics_port, "--jobs-db", self.folder / "jobs.db", *flags]
        self.environment = {}
        self.process = self.channel = None

    def start(self):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("METATTN_", "OMPI_"))}
        env.update(self.environment)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(list(map(str, self.command)), env=env, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        self.channel = grpc.insecure_channel(self.address)
        return self

    def wait_healthy(self, seconds=60):
        deadline = time.monotonic() + seconds
        while True:
            if self.health() == health_pb2.HealthCheckResponse.SERVING:
                return self
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.log()}"
            assert time.monotonic() < deadline, f"not healthy within {seconds} s:\n{self.log()}"
            time.sleep(0.1)

    def health(self):
        try:
            request = health_pb2.HealthCheckRequest()
            return health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=2).status
        except grpc.RpcError:
            return None

    def __enter__(self):
        try:
            return self.start().wait_healthy()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.channel:
            self.channel.close()
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
                raise AssertionError(f"SIGTERM did not end the server within 20 s:\n{self.log()}") from None

    def log(self):
        return self.log_path.read_text(errors="replace")

    def rank_pids(self):
        """Process ids of the ranks, in rank order."""
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                if arguments[0] != str(self.program).encode() or str(self.grpc_port).encode() not in arguments:
                    continue
                environment = dict(item.partition(b"=")[::2] for item in (entry / "environ").read_bytes().split(b"\0"))
                found[int(environment[b"OMPI_COMM_WORLD_RANK"])] = int(entry.name)
            except (FileNotFoundError, ProcessLookupError, PermissionError, KeyError):
                continue
        assert sorted(found) == list(range(self.ranks)), f"ranks found: {found}"
        return [found[rank] for rank in range(self.ranks)]

    def metrics(self):
        """{(name, (("label", "value"), ...)): value} of one scrape."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as reply:
            return parse_metrics(reply.read().decode())


def parse_metrics(text):
    values = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        series, value = line.rsplit(" ", 1)
        name, _, labels = series.partition("{")
        pairs = tuple(tuple(p.split("=", 1)) for p in labels.rstrip("}").split(",") if p)
        values[name, tuple((k, v.strip('"')) for k, v in pairs)] = float(value)
    return values


def total(metrics, name, **labels):
    """Sum over the series of `name` that carry these labels; fails when there are none."""
    wanted = {(k, str(v)) for k, v in labels.items()}
    found = [v for (n, pairs), v in metrics.items() if n == name and wanted <= set(pairs)]
    assert found, f"no series {name} with {labels}"
    return sum(found)
