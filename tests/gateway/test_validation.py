import pytest
from icarus_gateway.api.validation import (
    parse_content,
    parse_model,
    parse_sampling,
    parse_session_id,
    parse_tenant,
    parse_turn_id,
)

from icarus.errors import InvalidInputError
from icarus.text.content import Messages, Text, Tokens
from icarus.types import SamplingParams
from icarus.v1.generation_pb2 import Content
from icarus.v1.generation_pb2 import SamplingParams as Wire

EOS = frozenset({7})
VOCAB = 100


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": -3}, "max_tokens is -3"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"stop": ["x", ""]}, "stop is"),
        ({"stop": ["x"] * 17}, "stop strings is 17; it must be at most 16"),
        ({"stop": ["x" * 1025]}, "length of a stop string is 1025"),
        ({"top_p": 1.1}, r"top_p is 1.1; it must be in \(0, 1\]"),
        ({"min_tokens": -1}, r"min_tokens is -1; it must be in \[0, max_tokens 128\]"),
        ({"min_tokens": 6, "max_tokens": 5}, r"min_tokens is 6; it must be in \[0, max_tokens 5\]"),
        ({"min_p": -0.1}, r"min_p is -0.1; it must be in \[0, 1\]"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"min_p": float("nan")}, "min_p is nan"),
        ({"frequency_penalty": 2.1}, r"frequency_penalty is 2.1; it must be in \[-2, 2\]"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
        ({"presence_penalty": -2.1}, "presence_penalty is -2.1"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0.0; it must be in \[0.01, 100\]"),
        ({"repetition_penalty": 1e-30}, "repetition_penalty is 1e-30"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
        ({"logprobs": -1}, r"logprobs is -1; it must be in \[0, 20\]"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"stop_token_ids": [4, 100]}, r"stop_token_ids\[1\] is 100; it must be in the vocabulary, \[0, 100\)"),
        ({"stop_token_ids": [5] * 65}, "number of stop_token_ids is 65; it must be at most 64"),
    ],
)
def test_bad_sampling(fields, told):
    with pytest.raises(InvalidInputError, match=told):
        parse_sampling(Wire(**fields), EOS, VOCAB)


@pytest.mark.parametrize("penalty", [0.01, 100])
def test_a_repetition_penalty_at_its_limit(penalty):
    """As it comes over the wire, 0.01 is a little less."""
    assert parse_sampling(Wire(repetition_penalty=penalty), EOS, VOCAB).params.repetition_penalty == pytest.approx(
        penalty
    )


def test_defaults():
    default = parse_sampling(Wire(), EOS, VOCAB)
    seeds = {parse_sampling(Wire(), EOS, VOCAB).params.seed for _ in range(20)}
    assert default.params == SamplingParams(seed=default.params.seed, stop_token_ids=EOS) and len(seeds) == 20


def test_good_sampling():
    given = SamplingParams(3, 0.5, 0.25, 4, 0, frozenset({9, 99}), 2, 0.125, -2, 2, 0.5, 0)
    fields = {name: value for name, value in vars(given).items() if name != "stop_token_ids"}
    wire = Wire(**fields, stop_token_ids=[99, 9], stop=["x"], ignore_eos=True)
    sampling = parse_sampling(wire, EOS, VOCAB)
    assert sampling.params == given and sampling.stop == ("x",)
    wire.ignore_eos = False
    assert parse_sampling(wire, EOS, VOCAB).params.stop_token_ids == {7, 9, 99}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "content is empty"),
        ({"text": ""}, "text is empty"),
        ({"messages": {}}, "messages is empty"),
        ({"token_ids": {}}, "token_ids is empty"),
        ({"token_ids": {"ids": [0, 100]}}, r"token_ids\[1\] is 100; the model's vocabulary is \[0, 100\)"),
        ({"token_ids": {"ids": [0] * 4}}, "token_ids has 4 entries, and the context 3 tokens"),
        ({"messages": {"messages": [{"role": "user"}] * 4}}, "messages has 4 entries, and the context 3 tokens"),
        ({"messages": {"messages": [{"role": "robot"}]}}, r"messages\[0\].role is 'robot'"),
    ],
)
def test_bad_content(fields, told):
    with pytest.raises(InvalidInputError, match=told):
        parse_content(Content(**fields), vocab_size=100, context_length=3)


def test_good_content():
    assert parse_content(Content(text="a"), 100, 3) == Text("a")
    assert parse_content(Content(token_ids={"ids": [0, 99]}), 100, 3) == Tokens((0, 99))
    messages = parse_content(Content(messages={"messages": [{"role": "user", "content": "a"}]}), 100, 3)
    assert isinstance(messages, Messages) and messages.messages[0].content == "a"


def test_names():
    assert parse_tenant("") == "default" and parse_tenant("a") == "a"
    assert parse_turn_id("t") == "t" and parse_turn_id("") != parse_turn_id("")
    assert parse_model("m") == "m" and parse_session_id("s") == "s"
    for name, parse in (
        ("tenant", parse_tenant),
        ("turn_id", parse_turn_id),
        ("model", parse_model),
        ("session_id", parse_session_id),
    ):
        with pytest.raises(InvalidInputError, match=f"length of {name} is 257"):
            parse("x" * 257)
