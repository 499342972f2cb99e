"""Sampling through the whole system: client, gateway, decode worker, and back; the oracle judges every token."""

import pytest
from engine.naive_sampling import naive_scores
from services.test_chain import ids
from services.test_faults import lose_its_worker

from icarus.client import Client
from icarus.client.messages import Sampling
from icarus.client.results import TurnResult
from icarus.config import WorkerSection
from icarus.errors import InvalidInputError
from icarus.types import FinishReason, SamplingParams

EVERYTHING: Sampling = {
    "max_tokens": 40,
    "min_tokens": 12,
    "temperature": 1.25,
    "top_p": 0.9375,
    "top_k": 80,
    "min_p": 0.015625,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.25,
    "repetition_penalty": 1.125,
    "seed": 2**63 + 11,
    "logprobs": 3,
    "ignore_eos": True,
}
"""Numbers that float32 holds exactly."""


def params(options: Sampling) -> SamplingParams:
    values = {name: value for name, value in options.items() if name not in ("ignore_eos", "stop")}
    return SamplingParams(**{**values, "stop_token_ids": frozenset(options.get("stop_token_ids", ()))})


def check_sampled(system, model: str, prompt: list[int], options: Sampling, result: TurnResult) -> None:
    """Every token has the best score by the oracle's logits, up to 1e-3, and its log-probabilities are right."""
    tokens = [*prompt, *result.token_ids]
    logits = system.specialists.logits(model, tokens[:-1])[len(prompt) - 1 :]
    for index, (row, token) in enumerate(zip(logits, result.token_ids, strict=True)):
        scores = naive_scores(row.tolist(), params(options), tokens[: len(prompt) + index], len(prompt))
        assert max(scores) - scores[token] < 1e-3, f"output {index}"
    if "logprobs" in options:
        check_logprobs(logits.log_softmax(-1), options["logprobs"], result)


def check_logprobs(expected, num_top: int, result: TurnResult) -> None:
    assert len(result.logprobs) == len(result.token_ids)
    for row, token, entry in zip(expected, result.token_ids, result.logprobs, strict=True):
        assert entry.chosen.token_id == token
        assert entry.chosen.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [item.logprob for item in entry.top] == pytest.approx(row.topk(num_top).values.tolist(), abs=1e-4)
        assert [float(row[item.token_id]) for item in entry.top] == pytest.approx(
            [item.logprob for item in entry.top], abs=1e-4
        )


def test_a_turn_with_everything(system, client):
    prompt = ids(90, 7000)
    stream = client.generate("both", token_ids=prompt, **EVERYTHING)
    deltas = list(stream)
    result = stream.result()
    assert [token for delta in deltas for token in delta.token_ids] == list(result.token_ids)
    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)
    assert len(result.token_ids) == 40 and result.seed == EVERYTHING["seed"]
    check_sampled(system, "both", prompt, EVERYTHING, result)
    assert client.generate("both", token_ids=prompt, **EVERYTHING).result().token_ids == result.token_ids


def test_stop_tokens_and_min_tokens(system, client):
    prompt = ids(20, 7100)
    free = client.generate("s0", token_ids=prompt, max_tokens=12, ignore_eos=True).result()
    stops = free.token_ids[:3]
    stopped = client.generate("s0", token_ids=prompt, stop_token_ids=stops, ignore_eos=True).result()
    assert (stopped.token_ids, stopped.finish_reason) == (stops[:1], FinishReason.STOP)
    assert stopped.logprobs == ()
    options: Sampling = {"max_tokens": 12, "min_tokens": 5, "stop_token_ids": stops, "ignore_eos": True}
    longer = client.generate("s0", token_ids=prompt, **options).result()
    assert not set(stops) & set(longer.token_ids[:5])
    check_sampled(system, "s0", prompt, options, longer)


def test_a_stop_string_before_min_tokens_is_text(client):
    prompt = ids(20, 7200)
    free = client.generate("s1", token_ids=prompt, max_tokens=30, ignore_eos=True).result()
    stop = next(character for character in free.text if character.isascii())
    first = client.generate("s1", token_ids=prompt, max_tokens=30, ignore_eos=True, stop=stop).result()
    assert first.text == free.text[: free.text.index(stop)] and first.finish_reason == FinishReason.STOP
    num = len(first.token_ids)
    later = client.generate("s1", token_ids=prompt, max_tokens=30, min_tokens=num, ignore_eos=True, stop=stop).result()
    assert len(later.token_ids) > num and later.text.startswith(first.text + stop)


def test_a_seeded_turn_is_the_same_after_its_worker_died(make_system):
    """Penalties and the count of tokens go on over the output of the attempt that was lost."""
    with make_system(worker=WorkerSection(test_hooks=True)) as system, Client(system.address) as client:
        prompt = ids(30, 7300)
        options: Sampling = {**EVERYTHING, "max_tokens": 200, "min_tokens": 150}
        stream, _, busy = lose_its_worker(system, lambda: client.generate("both", token_ids=prompt, **options))
        result = stream.result()
        assert len(result.token_ids) == 200 and result.route.decode_worker != busy
        check_sampled(system, "both", prompt, options, result)


def test_bad_sampling_names_field_value_and_rule(client):
    for options, told in (
        ({"min_p": 1.1}, r"min_p is 1.1; it must be in \[0, 1\]"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"min_tokens": 9, "max_tokens": 8}, r"min_tokens is 9; it must be in \[0, max_tokens 8\]"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"stop_token_ids": [5000]}, r"stop_token_ids\[0\] is 5000; it must be in the vocabulary, \[0, 320\)"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            client.generate("s0", token_ids=ids(5, 1), **options).result()
    client.generate("s0", token_ids=ids(5, 1), max_tokens=1).result()
