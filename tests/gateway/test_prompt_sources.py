"""Where a prompt came from, over several attempts."""

from icarus_gateway.turns.prompt_sources import PromptSources, prompt_sources

from icarus.worker.v1 import decode_service_pb2 as pb


def test_what_is_found_beyond_the_cap_was_computed_and_is_taken_from_the_remote_first():
    told = PromptSources(computed=2, local=4, remote=6, written_under={"a": 4, "b": 3})
    assert told.capped(5) == PromptSources(computed=7, local=4, remote=1, written_under={"a": 4, "b": 1})
    assert told.capped(3) == PromptSources(computed=9, local=3, remote=0, written_under={"a": 3})
    assert told.capped(10) == told


def test_an_earlier_attempts_output_is_taken_from_the_computed_then_the_remote():
    message = pb.PromptUsage(
        computed_tokens=2, local_tokens=4, remote_tokens=6, written_under=[{"writer": "a", "tokens": 9}]
    )
    assert prompt_sources(message, 3) == PromptSources(computed=0, local=4, remote=5, written_under={"a": 9})
    assert prompt_sources(message, 10) == PromptSources(computed=0, local=2, remote=0, written_under={"a": 2})
