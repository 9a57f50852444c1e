"""What a client sees of a healthy server on 1, 2 and 4 ranks of the tiny model."""

import concurrent.futures
import time

import cluster
import greedy
import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

PROMPTS = [list(range(5 + n, 5 + n + 7 * (n + 1))) for n in range(16)]


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_stream_ends_with_usage_timings_and_reason(api, tiny):
    ids, text, finish = tiny.generate(PROMPTS[3], max_tokens=9, ignore_eos=True)
    assert len(ids) == 9 and text
    assert finish.reason == api.inference.FINISH_REASON_LENGTH
    assert (finish.usage.prompt_tokens, finish.usage.generated_tokens) == (len(PROMPTS[3]), 9)
    assert 0 < finish.timings.time_to_first_token_seconds <= finish.timings.total_seconds


def test_tokens_arrive_while_they_are_made(tiny):
    sizes = [len(message.tokens) for message in tiny.stream(PROMPTS[0], max_tokens=400, ignore_eos=True)]
    assert sum(sizes) == 400
    assert sizes[0] < 50 and len(sizes) > 5  # a message holds what was made since the last one was written


def test_concurrent_streams_give_what_each_gives_alone(tiny):
    alone = [greedy.greedy(tiny, prompt, 24) for prompt in PROMPTS]
    with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = list(pool.map(lambda prompt: greedy.greedy(tiny, prompt, 24), PROMPTS))
    parted = greedy.assert_same_but_for_near_ties({"alone": alone, "together": together})
    assert parted <= 2


def test_a_seed_gives_the_same_sample_again(tiny):
    first = tiny.generate(PROMPTS[1], max_tokens=16, ignore_eos=True, temperature=1.0, seed=7)[0]
    again = tiny.generate(PROMPTS[1], max_tokens=16, ignore_eos=True, temperature=1.0, seed=7)[0]
    other = tiny.generate(PROMPTS[1], max_tokens=16, ignore_eos=True, temperature=1.0, seed=8)[0]
    assert first == again
    assert first != other


def test_a_client_that_disconnects_cancels(tiny, tiny_cluster):
    def finished(reason):
        try:
            return cluster.total(tiny_cluster.metrics(), "metattn_requests_total", reason=reason)
        except AssertionError:
            return 0

    before = finished("cancelled")
    stream = tiny.stream(PROMPTS[2], max_tokens=1900, ignore_eos=True)
    next(stream)
    stream.cancel()
    assert wait_for(lambda: finished("cancelled") == before + 1)
    assert cluster.total(tiny_cluster.metrics(), "metattn_requests_running") == 0


def test_a_repeated_prompt_reuses_its_blocks(tiny):
    prompt = [3 + (i * i) % 250 for i in range(300)]
    first = tiny.generate(prompt, max_tokens=4, ignore_eos=True)
    again = tiny.generate(prompt, max_tokens=4, ignore_eos=True)
    assert first[2].usage.cached_tokens == 0
    assert again[2].usage.cached_tokens == 256  # whole blocks of 64, less the one that holds the last token
    assert again[0] == first[0]


def test_tokenize_and_detokenize_are_inverse(api, tiny):
    text = "Grüße, 世界 🙂"
    ids = tiny.inference.Tokenize(api.inference.TokenizeRequest(text=text)).ids
    back = tiny.inference.Detokenize(api.inference.DetokenizeRequest(ids=ids)).text
    assert back == text


def test_the_model_is_described(api, tiny, tiny_cluster):
    model = tiny.inference.GetModel(api.inference.GetModelRequest())
    assert (model.layers, model.kv_heads, model.ranks) == (3, 3, tiny_cluster.ranks)
    assert model.max_context == 2048


def test_reflection_lists_the_services(tiny_cluster):
    services = set(ProtoReflectionDescriptorDatabase(tiny_cluster.channel).get_services())
    assert {"metattn.v1.InferenceService", "metattn.v1.JobService", "grpc.health.v1.Health"} <= services
    assert "metattn.v1.WorkerControl" not in services  # for ranks only


def test_a_job_is_stored_watched_and_fetched(api, tiny):
    request = tiny.request(PROMPTS[4], max_tokens=12, ignore_eos=True)
    job = tiny.jobs.Submit(api.jobs.SubmitJobRequest(request=request))
    watched = []
    for message in tiny.jobs.Watch(api.jobs.WatchJobRequest(id=job.id), timeout=60):
        watched += message.token_ids
    stored = tiny.jobs.Get(api.jobs.GetJobRequest(id=job.id))
    assert stored.state == api.jobs.JOB_STATE_SUCCEEDED
    assert len(watched) == 12 and list(stored.token_ids) == watched


def test_metrics_count_what_was_done_on_every_rank(tiny, tiny_cluster):
    before = tiny_cluster.metrics()
    tiny.generate(PROMPTS[5], max_tokens=10, ignore_eos=True)
    names = ["metattn_generation_tokens_total", "metattn_time_to_first_token_seconds_count"]
    assert wait_for(lambda: [cluster.total(tiny_cluster.metrics(), n) - cluster.total(before, n) for n in names]
                    == [10, 1])
    after = tiny_cluster.metrics()
    for rank in range(tiny_cluster.ranks):
        name = "metattn_rank_step_seconds_total"
        assert cluster.total(after, name, rank=rank) > cluster.total(before, name, rank=rank)


@pytest.mark.parametrize("change, code, field", [
    (lambda r: setattr(r, "model", "nobody"), grpc.StatusCode.NOT_FOUND, "model"),
    (lambda r: setattr(r.sampling, "max_tokens", 0), grpc.StatusCode.INVALID_ARGUMENT, "max_tokens"),
    (lambda r: setattr(r.sampling, "temperature", -1), grpc.StatusCode.INVALID_ARGUMENT, "temperature"),
    (lambda r: r.tokens.ids.extend([7] * 3000), grpc.StatusCode.INVALID_ARGUMENT, "2048"),
    (lambda r: r.tokens.ids.extend([10**6]), grpc.StatusCode.INVALID_ARGUMENT, "tokens"),
    (lambda r: setattr(r, "deadline_seconds", 1e-9), grpc.StatusCode.DEADLINE_EXCEEDED, "deadline"),
], ids=["unknown model", "no tokens asked for", "temperature below 0", "prompt too long", "id outside the vocabulary",
        "deadline passed"])
def test_a_bad_request_is_refused_by_name_and_harms_nobody(tiny, change, code, field):
    request = tiny.request(PROMPTS[0], max_tokens=4)
    change(request)
    with pytest.raises(grpc.RpcError) as failure:
        list(tiny.inference.Generate(request, timeout=30))
    assert failure.value.code() == code
    assert field in failure.value.details()
    assert len(tiny.generate(PROMPTS[0], max_tokens=4, ignore_eos=True)[0]) == 4
