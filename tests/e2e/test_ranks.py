"""The same tokens whatever the number of ranks, uneven slices and ranks without a head included."""

import concurrent.futures
import socket

import cluster
import greedy
import pytest

TOKENS = 48


def outputs(start_cluster, client_of, model, prompts, cases):
    runs = {}
    for ranks, flags in cases:
        running = start_cluster(model, ranks, *flags)
        client = client_of(running)
        runs[" ".join([f"{ranks} ranks", *flags])] = [greedy.greedy(client, p, TOKENS) for p in prompts]
        running.stop()
    return runs


def test_tiny_model_on_1_to_4_ranks(start_cluster, client_of, tiny_model):
    prompts = [[3 + (i * i * n) % 250 for i in range(40 * n)] for n in range(1, 9)]
    cases = [(1, ()), (2, ()), (3, ()), (4, ()), (2, ("--rank-weights", "2,1"))]
    runs = outputs(start_cluster, client_of, tiny_model, prompts, cases)
    parted = greedy.assert_same_but_for_near_ties(runs)
    assert parted <= len(prompts), f"{parted} of {len(prompts) * 4} outputs parted at a near tie"


@pytest.mark.parametrize("route", ["full", "local"])
def test_real_model_on_1_2_and_4_ranks(start_cluster, client_of, real_model, route):
    prompts = ["The history of the steam engine begins", "def fibonacci(n):\n", "Once upon a time, in a small village",
               "1, 2, 4, 8, 16, " * 60]
    cases = [(n, ("--route", route, "--max-model-len", "2048")) for n in (1, 2, 4)]
    runs = outputs(start_cluster, client_of, real_model, prompts, cases)
    greedy.assert_same_but_for_near_ties(runs)


def test_ranks_that_read_far_pages_for_others(start_cluster, client_of, tiny_model):
    """Four sequences decode together; from token 127 on they have far pages, of which the last of four ranks has none itself."""
    prompts = [[3 + (i * i * n) % 250 for i in range(130 + n)] for n in range(1, 5)]
    runs = {}
    for ranks, flags in ((1, ()), (2, ("--attention-helpers",)), (4, ("--attention-helpers",))):
        running = start_cluster(tiny_model, ranks, "--window", "64", *flags)
        client = client_of(running)
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            runs[f"{ranks} ranks"] = list(pool.map(lambda prompt: greedy.greedy(client, prompt, 100), prompts))
        helped = cluster.total(running.metrics(), "metattn_rank_helped_rows_total")
        assert (helped > 0) == bool(flags), f"{ranks} ranks: {helped} rows travelled"
        running.stop()
    assert greedy.assert_same_but_for_near_ties(runs) <= len(prompts)


def test_ranks_on_two_hosts_speak_tcp(tmp_path, client_of, tiny_model):
    """The second host is this one under another name: in ssh's place a script runs the command here."""
    agent = tmp_path / "agent"
    agent.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    agent.chmod(0o755)
    hosts = ["--hosts", f"{socket.gethostname()}:1,elsewhere:1", "--threads", "1", "--no-bind"]
    running = cluster.Cluster(tmp_path / "two-hosts", tiny_model, 2, launch=hosts)
    running.environment["OMPI_MCA_plm_rsh_agent"] = str(agent)
    with running:
        ids, _, finish = client_of(running).generate(list(range(5, 100)), max_tokens=20, ignore_eos=True)
        assert len(ids) == 20 and finish.usage.prompt_tokens == 95
        assert "mpi/tcp" in running.log()
