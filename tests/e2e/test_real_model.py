"""The model that the demo serves, on two ranks: it chats, it reads a long prompt."""

import cluster
import pytest


@pytest.fixture(scope="module")
def real_cluster(real_model, tmp_path_factory):
    with cluster.Cluster(tmp_path_factory.mktemp("real"), real_model, 2) as running:
        yield running


@pytest.fixture
def client(real_cluster, client_of):
    return client_of(real_cluster)


def test_it_answers_a_chat(api, client):
    _, text, finish = client.generate({"user": "What is the capital of France?"}, max_tokens=48)
    assert "Paris" in text
    assert finish.reason == api.inference.FINISH_REASON_STOP


def test_it_counts_on(client):
    _, text, _ = client.generate("one two three four five six seven", max_tokens=3)
    assert text.startswith(" eight")


def test_it_reads_four_thousand_tokens(api, client):
    filler = " The ship sailed on through quiet water."
    prompt = "The secret word is marigold." + filler * 450 + " The secret word is"
    ids, text, finish = client.generate(prompt, max_tokens=4)
    assert finish.usage.prompt_tokens > 3500
    assert "mar" in text, text


def test_a_stop_string_ends_it(api, client):
    prompt = "one two three four five six seven"
    _, whole, _ = client.generate(prompt, max_tokens=16, ignore_eos=True)
    stop = whole[len(whole) // 2:len(whole) // 2 + 3]
    _, text, finish = client.generate(prompt, max_tokens=16, ignore_eos=True, stop=[stop])
    assert finish.reason == api.inference.FINISH_REASON_STOP
    assert finish.stop_match == stop
    assert text == whole[:whole.index(stop)]
