"""The same tokens whatever the number of ranks, uneven slices and ranks without a head included."""

import greedy
import pytest

TOKENS = 48


def outputs(start_cluster, client_of, model, prompts, cases):
    runs = {}
    for ranks, flags in cases:
        running = start_cluster(model, ranks, *flags)
        client = client_of(running)
        runs[" ".join([f"{ranks} ranks", *flags])] = [greedy.greedy(client, p, TOKENS) for p in prompts]
        running.__exit__()
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
