"""The demo's arithmetic: what it counts, and that it says when its figures are doubtful."""

import dataclasses
import json

import pytest
from rich.console import Console

from icarus.cli.demo import _check_room
from icarus.cli.demo_chain import Chain, Plan, TurnFigures, play
from icarus.cli.demo_report import comparison_table, ratios, turns_table, write_json
from icarus.client import Client
from icarus.config import CacheSection, Config
from icarus.errors import ConfigError
from icarus.types import AdapterMode

PLAN = Plan()
WARM_UP = Plan(4, 288, 2, 16)


def test_the_plan_is_the_issues():
    assert PLAN.history_tokens(7) == 1024 + 8 * 32 + 7 * 64 == 1728
    inputs = PLAN.inputs(range(300))
    assert [len(ids) for ids in inputs] == [1024] + [64] * 7
    assert inputs[0][:301] == [*range(300), 0] and inputs[1][0] == 1024 % 300
    assert inputs == PLAN.inputs(range(300))


def test_the_warm_up_shares_no_block_with_the_chain():
    assert WARM_UP.inputs(range(300), skip=150)[0][:16] != PLAN.inputs(range(300))[0][:16]


def test_a_pool_too_small_is_refused_and_the_default_is_not():
    _check_room(Config(), PLAN, WARM_UP)
    with pytest.raises(ConfigError, match="num_blocks = 512"):
        _check_room(dataclasses.replace(Config(), cache=CacheSection(num_blocks=512)), PLAN, WARM_UP)


def play_scripted(gateway, mode):
    seen: list[TurnFigures] = []
    with Client(gateway.address, timeout=10) as client:
        chain = play(client, mode, ["a", "b"], [[1, 2, 3], [4]], 3, seen.append)
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
    text = console.export_text()
    assert "…" not in text and " d0 " in text and "5.0" in text and "32.0" in text
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
