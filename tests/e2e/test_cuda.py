"""A server on emulated GPUs (tests/emu), through gRPC: CUDA's kernels, streams and NCCL give the CPU backend's tokens."""

import concurrent.futures

import cluster
import greedy
import pytest

PROGRAM = cluster.BUILD / "bin/metattn_emulated"
PROMPTS = [[3 + (i * i * n) % 250 for i in range(length)] for n, length in ((1, 20), (2, 75), (3, 140))]
TOKENS = (8, 8, 64)  # of each prompt: steps of three rows, then of one
FLAGS = ("--window", "64", "--max-model-len", "256", "--max-num-batched-tokens", "128", "--kv-cache-memory", "16MiB")
CUDA = ("--device", "cuda", "--probe-ranks", "false")  # a probe takes seconds in emulation

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="no CUDA toolkit here: metattn_emulated was not built")


def at_once(work, *arguments, prompts=PROMPTS):
    """One call a prompt, all together, so that decode steps have several rows."""
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(work, prompts, *arguments))


@pytest.mark.parametrize("routed", [False, True], ids=["dense", "routed"])
def test_tokens_are_those_of_the_cpu_on_1_to_3_gpus(tmp_path, client_of, tiny_model, tiny_controller, routed):
    flags = (*FLAGS, *(("--controller", tiny_controller) if routed else ()))
    with cluster.Cluster(tmp_path / "cpu", tiny_model, 1, flags) as running:
        client = client_of(running)
        expected = at_once(lambda prompt, tokens: greedy.greedy(client, prompt, tokens, temperature=0), TOKENS)
    for ranks in (1, 2, 3):
        cuda = ("--device", "cuda") if ranks == 2 else CUDA
        gpus = cluster.Cluster(tmp_path / f"cuda{ranks}", tiny_model, ranks, (*flags, *cuda),
                               launch=("--threads", "1"), program=PROGRAM)
        gpus.environment["EMU_DEVICES"] = "3"
        with gpus as running:
            client = client_of(running)
            ties = sum(at_once(lambda prompt, ids: greedy.follow(client, prompt, ids, temperature=0), expected))
            print(f"{ranks} GPUs: {ties} near ties of {sum(TOKENS)} steps went the other way")
            assert ties <= 4
            assert ranks == 1 or "transport nccl" in running.log()
            layers = cluster.total(running.metrics(), "metattn_rank_routed_rows_total", mechanism="linear") if routed else 1
            assert layers > 0


@pytest.mark.parametrize("routed", [False, True], ids=["dense", "routed"])
def test_ranks_that_read_far_pages_for_others(tmp_path, client_of, tiny_model, tiny_controller, routed):
    """Rows travel inside recorded steps, copies of pages beside them; the tokens are those of one CPU. The last of four ranks
    has no KV head of its own. Rows have far pages from token 127 on: steps of one shape begin without help."""
    prompts, tokens = [[3 + (i * i * n) % 250 for i in range(117 + n)] for n in (1, 2, 3, 4)], (22,) * 4
    flags = (*FLAGS, *(("--controller", tiny_controller) if routed else ()))
    with cluster.Cluster(tmp_path / "cpu", tiny_model, 1, flags) as running:
        client = client_of(running)
        expected = at_once(lambda prompt, count: greedy.greedy(client, prompt, count, temperature=0), tokens, prompts=prompts)
    for ranks in (2, 4):
        gpus = cluster.Cluster(tmp_path / f"cuda{ranks}", tiny_model, ranks, (*flags, *CUDA, "--attention-helpers"),
                               launch=("--threads", "1"), program=PROGRAM)
        # Every second stream runs as early as it may, the others as late: steps before copies of pages, copies before steps.
        gpus.environment.update(EMU_DEVICES="4", EMU_EAGER_MASK="0x55555555" if ranks == 2 else "0xaaaaaaaa")
        with gpus as running:
            client = client_of(running)
            ties = sum(at_once(lambda prompt, ids: greedy.follow(client, prompt, ids, temperature=0), expected, prompts=prompts))
            assert ties <= 4
            assert "for rank" in running.log()
            assert cluster.total(running.metrics(), "metattn_rank_helped_rows_total") > 0


def test_the_real_model_on_2_gpus(tmp_path, client_of, real_model):
    """A few tokens: an emulated step of this model takes seconds."""
    runs = {}
    for name, flags in (("cpu", ()), ("cuda", (*CUDA, "--collective-timeout", "300"))):
        ranks = cluster.Cluster(tmp_path / name, real_model, 2, ("--max-model-len", "256", *flags),
                                launch=("--threads", "1"), program=PROGRAM)
        ranks.environment.update(EMU_DEVICES="2", EMU_DEVICE_MEMORY_MB="1000")
        with ranks as running:
            runs[name] = [greedy.greedy(client_of(running), "The capital of France is", 3, temperature=0, timeout=400)]
    assert greedy.assert_same_but_for_near_ties(runs) == 0


def test_k_v_memory_comes_from_the_gpus_budget(tmp_path, tiny_model):
    gpus = cluster.Cluster(tmp_path, tiny_model, 2, ("--max-model-len", "256", *CUDA, "--device-memory-fraction", "0.5"),
                           launch=("--threads", "1"), program=PROGRAM)
    gpus.environment.update(EMU_DEVICES="2", EMU_DEVICE_MEMORY_MB="4")
    gpus.start()
    try:
        assert gpus.process.wait(60) != 0
        assert "of CUDA device 0 (--device-memory-fraction)" in gpus.log()
    finally:
        gpus.stop()
