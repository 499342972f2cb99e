"""Turns whose tokens come several at a time, through the whole system."""

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
    assert first == 1 and min(middle) >= 8 and last >= 1 and first + sum(middle) + last == 30
    assert "".join(delta.text for delta in deltas) == alone.text
    assert stream.token_ids == alone.token_ids
    assert [entry.chosen.token_id for entry in stream.logprobs] == list(alone.token_ids)
    assert sizes(client.generate("s0", min_delta_tokens=30, **options)) == [1, 29]


def test_a_session_takes_them_too(client):
    session = client.create_session(token_ids=ids(40, 8200))
    answer = session.generate("s1", max_tokens=20, min_delta_tokens=20, ignore_eos=True).result()
    assert session.token_ids() == (*ids(40, 8200), *answer.token_ids)


def test_a_stop_string_ends_the_turn_where_it_is(system, client):
    """Though the worker had gone on by then; what came after it is in no history."""
    prompt = ids(20, 8300)
    free = client.generate("s1", token_ids=prompt, max_tokens=40, ignore_eos=True).result()
    stop = next(character for character in free.text[1:] if character.isascii())
    options = {"max_tokens": 40, "ignore_eos": True, "stop": stop}
    alone = client.generate("s1", token_ids=prompt, **options).result()
    session = client.create_session(token_ids=prompt)
    together = session.generate("s1", min_delta_tokens=40, **options).result()
    assert together.finish_reason is alone.finish_reason is FinishReason.STOP
    assert (together.text, together.token_ids) == (alone.text, alone.token_ids)
    assert session.token_ids() == (*prompt, *alone.token_ids)
    system.wait_until_idle()


def test_each_token_is_measured(system, client):
    def measured() -> tuple[float, float]:
        name = "icarus_inter_token_latency_seconds"
        count, total = (sum(system.gateway_metric(f"{name}_{kind}", model="s0")) for kind in ("count", "sum"))
        return count, total

    client.generate("s0", token_ids=ids(40, 8400), max_tokens=2, ignore_eos=True).result()
    count, seconds = measured()
    client.generate("s0", token_ids=ids(40, 8400), max_tokens=32, min_delta_tokens=8, ignore_eos=True).result()
    assert measured()[0] == count + 31 and measured()[1] > seconds
