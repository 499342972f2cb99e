"""The demo's arithmetic: what it counts, and that it says when its figures are doubtful."""

import dataclasses
import json

import pytest
import tiny
from rich.console import Console

from icarus.adapters.generate import write_random_adapter
from icarus.cli.demo.chain import Chain, Step, TurnFigures, play
from icarus.cli.demo.command import _POOL_BLOCKS, _check_room, _specialists
from icarus.cli.demo.report import answers_table, comparison_table, ratios, turns_table, write_json
from icarus.cli.demo.text import CONTEXT, CREW, WARM_UP
from icarus.client import Client
from icarus.config import CacheSection, Config
from icarus.errors import ConfigError
from icarus.model.config import ModelConfig
from icarus.model.digest import base_digest
from icarus.types import AdapterMode

SAID = [[{"role": "user", "content": "one"}], [{"role": "user", "content": "two three"}]]


def test_the_crew_alternates_between_two_workers():
    assert len(CREW) == len({ask.specialist for ask in CREW}) == 8
    assert all(ask.messages[-1]["content"] == ask.instruction for ask in CREW)


def test_the_warm_up_shares_no_message_with_the_chain():
    assert not {message["content"] for message in WARM_UP} & {message["content"] for message in CONTEXT}


def test_a_pool_too_small_is_refused_and_the_default_is_not():
    histories = [1100 + 100 * turn for turn in range(8)]
    _check_room(dataclasses.replace(Config(), cache=CacheSection(num_blocks=_POOL_BLOCKS)), histories, [300])
    with pytest.raises(ConfigError, match="num_blocks = 512"):
        _check_room(dataclasses.replace(Config(), cache=CacheSection(num_blocks=512)), histories, [300])


@pytest.fixture
def shipped(tmp_path):
    """A base, and a folder with one specialist trained on it, one trained on another, and one of ours to come."""
    shape = tiny.tiny_llama(tmp_path / "model")
    model, digest = ModelConfig.from_folder(shape), base_digest(shape)
    write_random_adapter(tmp_path / "shipped" / "banking", model, digest, rank=2, seed=0)
    write_random_adapter(tmp_path / "shipped" / "tools", model, "ab" * 32, rank=2, seed=0)
    return shape, tmp_path / "shipped"


def test_who_is_trained_for_the_base_takes_part_as_trained(shipped, tmp_path):
    folders, trained = _specialists(*shipped, tmp_path / "made")
    assert trained == ["banking"] and folders["banking"] == shipped[1] / "banking"
    assert list(folders) == [ask.specialist for ask in CREW]
    assert all(path.parent == tmp_path / "made" for name, path in folders.items() if name != "banking")


def play_scripted(gateway, mode):
    seen: list[TurnFigures] = []
    with Client(gateway.address, timeout=10) as client:
        chain = play(client, mode, SAID[0], [Step("a", SAID[0], 3), Step("b", SAID[1], 3)], seen.append)
    assert tuple(seen) == chain.turns
    return chain


def test_a_chain_adds_up(gateway):
    shared, private = (play_scripted(gateway, mode) for mode in (AdapterMode.SHARED, AdapterMode.PRIVATE))
    assert [(turn.turn, turn.specialist, turn.decode_worker) for turn in shared.turns] == [
        (1, "a", "decode-0"),
        (2, "b", "decode-0"),
    ]
    length = [turn.prompt_tokens + turn.completion_tokens - 1 for turn in shared.turns]
    assert shared.totals.unique_tokens == max(length) and private.totals.unique_tokens == sum(length)
    assert shared.totals.prompt_tokens == sum(turn.prompt_tokens for turn in shared.turns)
    assert shared.totals.median_ttft_seconds_later_turns == shared.turns[1].ttft_seconds
    assert 0 < shared.turns[0].ttft_seconds < shared.totals.wall_seconds


def test_figures_that_disagree_are_said_to(gateway):
    chain = play_scripted(gateway, AdapterMode.SHARED)  # the script's turns claim 5 written each, its worker none
    assert chain.notes == ("shared: turns report 10 KV positions written, workers 0",)


def test_report_and_json(gateway, tmp_path):
    shared = play_scripted(gateway, AdapterMode.SHARED)
    totals = dataclasses.replace(shared.totals, computed_tokens=20, kv_bytes_distinct=4 * 2**20)
    shared = dataclasses.replace(shared, totals=totals)
    private = Chain(shared.turns, dataclasses.replace(totals, computed_tokens=100, kv_bytes_distinct=2**25), ())
    assert ratios(shared, private)["computed_tokens"] == 5 and ratios(shared, private)["kv_bytes_distinct"] == 8
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(turns_table("title", shared.turns), comparison_table(shared, private))
    console.print(answers_table([dataclasses.replace(shared.turns[0], answer=" [card] arrival\n")]))
    text = console.export_text()
    assert "…" not in text and " d0 " in text and "5.0" in text and "32.0" in text and "[card] arrival" in text
    write_json(tmp_path / "demo.json", shared, private, {"model": "m"})
    written = json.loads((tmp_path / "demo.json").read_text())
    assert [turn["mode"] for turn in written["turns"]] == ["shared"] * 4
    assert set(written["totals"]["private"]) == {
        "prompt_tokens",
        "computed_tokens",
        "unique_tokens",
        "local_tokens",
        "remote_tokens",
        "cross_adapter_tokens",
        "nixl_bytes",
        "kv_bytes_distinct",
        "kv_bytes_held",
        "median_ttft_seconds_later_turns",
        "wall_seconds",
    }
