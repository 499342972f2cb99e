"""Turns whose tokens come several at a time, through the whole system."""

import time

from services.test_chain import ids

from icarus.types import FinishReason


def sizes(deltas) -> list[int]:
    return [len(delta.token_ids) for delta in deltas if delta.token_ids]


def test_the_same_answer_in_fewer_pieces(client):
    options = {"token_ids": ids(40, 8100), "max_tokens": 30, "ignore_eos": True, "logprobs": 1}
    alone = client.generate("s0", **options).result()
    stream = client.generate("s0", min_delta_tokens=8, **options)
    deltas = list(stream)
    first, *middle, last = sizes(deltas)
    assert first == 1 and all(size >= 8 for size in middle) and first + sum(middle) + last == 30
    assert "".join(delta.text for delta in deltas) == alone.text
    assert stream.token_ids == alone.token_ids
    assert [entry.chosen.token_id for entry in stream.logprobs] == list(alone.token_ids)


def test_a_session_takes_them_too(client):
    session = client.create_session(token_ids=ids(40, 8200))
    stream = session.generate("s1", max_tokens=20, min_delta_tokens=20, ignore_eos=True)
    assert sizes(stream) == [1, 19]
    assert session.token_ids() == (*ids(40, 8200), *stream.token_ids)


def test_a_stop_string_ends_the_turn_where_it_is(system, client):
    """Though the worker had gone on, and ended by itself, by then; what came after it is in no history."""
    prompt = ids(20, 8300)
    first, *rest = client.generate("s1", token_ids=prompt, max_tokens=40, ignore_eos=True)
    later = "".join(delta.text for delta in rest)
    stop = next(character for character in later if character.isascii() and character not in first.text)
    options = {"max_tokens": 40, "ignore_eos": True, "stop": stop}
    alone = client.generate("s1", token_ids=prompt, **options).result()
    session = client.create_session(token_ids=prompt)
    together = session.generate("s1", min_delta_tokens=40, **options).result()
    assert together.finish_reason is alone.finish_reason is FinishReason.STOP
    assert (together.text, together.token_ids) == (alone.text, alone.token_ids)
    assert session.token_ids() == (*prompt, *alone.token_ids)
    assert together.usage.kv_written_tokens - together.usage.computed_tokens == 39  # the last one's is not needed
    system.wait_until_idle()


def test_each_token_is_measured(system, client):
    def measured(kind: str) -> float:
        return sum(system.gateway_metric(f"icarus_inter_token_latency_seconds_{kind}", model="s0"))

    prompt = ids(40, 8400)
    client.generate("s0", token_ids=prompt, max_tokens=2, ignore_eos=True).result()
    count, seconds, started = measured("count"), measured("sum"), time.monotonic()
    client.generate("s0", token_ids=prompt, max_tokens=64, min_delta_tokens=64, ignore_eos=True).result()
    assert measured("count") == count + 63
    assert 0 < measured("sum") - seconds < time.monotonic() - started
