"""Many clients at once and many requests one after another: no error, no growing memory."""

import concurrent.futures
import pathlib

import pytest


def resident_bytes(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no VmRSS")


def test_64_concurrent_streams_all_finish(start_cluster, client_of, tiny_model):
    client = client_of(start_cluster(tiny_model, 2))
    prompts = [[3 + (i * n) % 250 for i in range(1, 20 + 8 * n)] for n in range(64)]
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        results = list(pool.map(lambda p: client.generate(p, max_tokens=32, ignore_eos=True, timeout=240), prompts))
    assert [len(ids) for ids, _, _ in results] == [32] * 64
    assert [f.usage.prompt_tokens for _, _, f in results] == [len(p) for p in prompts]


@pytest.mark.parametrize("ranks", [2])
def test_a_thousand_requests_do_not_grow_memory(start_cluster, client_of, tiny_model, ranks):
    running = start_cluster(tiny_model, ranks)
    client, pids = client_of(running), running.rank_pids()
    halfway = []
    for number in range(1000):
        prompt = [3 + (i * number) % 250 for i in range(1, 90)]
        ids, _, _ = client.generate(prompt, max_tokens=4, ignore_eos=True)
        assert len(ids) == 4
        if number == 499:
            halfway = [resident_bytes(pid) for pid in pids]
    grown = [resident_bytes(pid) - before for pid, before in zip(pids, halfway)]
    assert max(grown) < 4 << 20, f"resident memory grew by {grown} bytes over 500 requests"
