"""Starting, draining, failing: no process is left, no client hangs, and the log says why."""

import os
import pathlib
import re
import signal
import subprocess
import threading
import time

import cluster
import grpc
import pytest

PROMPT = list(range(10, 60))
LONG = {"max_tokens": 1900, "ignore_eos": True}


class BackgroundStream(threading.Thread):
    """Consumes a Generate stream; what came of it is in tokens, finish and error."""

    def __init__(self, client, **sampling):
        super().__init__(daemon=True)
        self.stream = client.stream(PROMPT, **sampling)
        self.tokens, self.finish, self.error = 0, None, None
        self.started = threading.Event()
        self.start()
        assert self.started.wait(30), f"no token came: {self.error}"

    def run(self):
        try:
            for message in self.stream:
                self.tokens += len(message.tokens)
                if message.HasField("finish"):
                    self.finish = message.finish
                self.started.set()
        except grpc.RpcError as error:
            self.error = error
            self.started.set()


def ended(process, seconds):
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_lets_running_requests_finish_and_refuses_new_ones(api, start_cluster, client_of, tiny_model, ranks):
    running = start_cluster(tiny_model, ranks)
    client, pids = client_of(running), running.rank_pids()
    stream = BackgroundStream(client, **LONG)
    running.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    if stream.is_alive():
        with pytest.raises(grpc.RpcError) as failure:
            client.generate(PROMPT, max_tokens=2)
        assert failure.value.code() == grpc.StatusCode.UNAVAILABLE
    stream.join(60)
    assert stream.error is None and stream.tokens == 1900
    assert ended(running.process, 15) == 0, running.log()
    assert cluster.processes_of(pids) == []


def test_a_drain_is_bounded(api, start_cluster, client_of, tiny_model):
    running = start_cluster(tiny_model, 2, "--drain-timeout", "0.2", "--max-num-seqs", "1")
    client = client_of(running)
    streams = [BackgroundStream(client, **LONG)]
    waiting = client.stream(PROMPT, **LONG)
    running.process.send_signal(signal.SIGTERM)
    assert ended(running.process, 15) is not None, running.log()
    streams[0].join(5)
    with pytest.raises(grpc.RpcError):
        list(waiting)


def test_a_second_sigterm_stops_at_once(start_cluster, client_of, tiny_model):
    running = start_cluster(tiny_model, 2, "--drain-timeout", "60")
    client, pids = client_of(running), running.rank_pids()
    streams = [BackgroundStream(client, **LONG) for _ in range(16)]
    running.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    running.process.send_signal(signal.SIGTERM)
    assert ended(running.process, 6) is not None, running.log()
    assert cluster.processes_of(pids) == []
    for stream in streams:
        stream.join(5)
        assert not stream.is_alive()


@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_rank_ends_all_within_ten_seconds_and_is_named(start_cluster, client_of, tiny_model, victim):
    running = start_cluster(tiny_model, 2)
    client, pids = client_of(running), running.rank_pids()
    stream = BackgroundStream(client, **LONG)
    os.kill(pids[victim], signal.SIGKILL)
    begin = time.monotonic()
    code = ended(running.process, 10)
    assert code not in (None, 0), running.log()
    while cluster.processes_of(pids):
        assert time.monotonic() - begin < 10, f"{cluster.processes_of(pids)} of {pids} still run:\n{running.log()}"
        time.sleep(0.05)
    stream.join(5)
    assert not stream.is_alive() and (stream.error is not None or stream.finish is not None)
    lines = [line for line in running.log().splitlines() if re.search(rf"\brank {victim}\b.*\blost\b", line)]
    assert len(lines) == 1, running.log()


def test_a_rank_killed_while_idle_is_noticed_too(start_cluster, tiny_model):
    running = start_cluster(tiny_model, 2)
    pids = running.rank_pids()
    os.kill(pids[1], signal.SIGKILL)
    begin = time.monotonic()
    assert ended(running.process, 10) not in (None, 0), running.log()
    while cluster.processes_of(pids):
        assert time.monotonic() - begin < 10, running.log()
        time.sleep(0.05)


@pytest.mark.parametrize("flag, port", [("--grpc-port", "grpc_port"), ("--metrics-port", "metrics_port")])
def test_a_port_in_use_is_an_error_that_names_the_flag(tmp_path, start_cluster, tiny_model, flag, port):
    first = start_cluster(tiny_model, 1)
    second = cluster.Cluster(tmp_path / "second", tiny_model, 2, **{port: getattr(first, port)})
    second.start()
    try:
        assert ended(second.process, 20) not in (None, 0)
        assert flag in second.log() and str(getattr(first, port)) in second.log()
        assert first.health() == 1
    finally:
        second.stop()


@pytest.mark.parametrize("make, complaint", [
    (lambda path: None, "no-such-model.gguf"),
    (lambda path: path.write_bytes(b""), "no-such-model.gguf"),
    (lambda path: path.write_bytes(b"GGUF" + b"\xff" * 60), "no-such-model.gguf"),
])
def test_a_model_that_cannot_be_read_ends_every_rank_with_its_name(tmp_path, start_cluster, make, complaint):
    path = tmp_path / "no-such-model.gguf"
    make(path)
    running = start_cluster(path, 2, wait=False)
    assert ended(running.process, 20) not in (None, 0)
    assert complaint in running.log()
    assert "Traceback" not in running.log() and "terminate called" not in running.log()


@pytest.mark.parametrize("flags, complaint", [
    (("--rank-weights", "1,2,3"), "--rank-weights"),
    (("--rank-weights", "1,-2"), "--rank-weights"),
    (("--window", "-1"), "--window"),
    (("--controller", "/nowhere"), "/nowhere/controller.json"),
    (("--route", "routed"), "--controller"),
    (("--elastic",), "controller"),
    (("--route", "sideways"), "--route"),
    (("--kv-cache-memory", "1000"), "memory"),
    (("--max-model-len", "100000000"), "--max-model-len"),
])
def test_a_flag_that_cannot_work_is_named(start_cluster, tiny_model, flags, complaint):
    running = start_cluster(tiny_model, 2, *flags, wait=False)
    assert ended(running.process, 20) not in (None, 0), running.log()
    assert complaint in running.log()


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_idle_ranks_sleep(start_cluster, client_of, tiny_model):
    running = start_cluster(tiny_model, 2)
    client_of(running).generate(PROMPT, max_tokens=4)
    time.sleep(1)
    pids = running.rank_pids()
    before, begin = [cpu_seconds(p) for p in pids], time.monotonic()
    time.sleep(4)
    elapsed = time.monotonic() - begin
    for rank, (pid, seconds) in enumerate(zip(pids, before)):
        share = (cpu_seconds(pid) - seconds) / elapsed
        assert share < 0.05, f"rank {rank} uses {share:.0%} of a core while idle"


def test_the_log_describes_every_rank(start_cluster, tiny_model):
    running = start_cluster(tiny_model, 2)
    pids = running.rank_pids()
    for rank in range(2):
        lines = [line for line in running.log().splitlines() if re.search(rf"\brank {rank}\b", line)]
        assert any(str(pids[rank]) in line and "thread" in line for line in lines), running.log()


def test_metattnctl_health_tells_a_server_from_none(start_cluster, tiny_model):
    command = [cluster.BUILD / "metattnctl", "health", "--server"]
    running = start_cluster(tiny_model, 1)
    assert subprocess.run([*command, running.address], capture_output=True, check=False).returncode == 0
    nobody = f"127.0.0.1:{cluster.free_port()}"
    assert subprocess.run([*command, nobody], capture_output=True, check=False).returncode != 0
