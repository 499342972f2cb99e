"""`icarus demo`: one conversation through eight specialists, with one KV cache and then the conventional way."""

import argparse
import dataclasses
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from rich.console import Console
from rich.live import Live

import icarus
from icarus.adapters.generate import write_random_adapter
from icarus.adapters.metadata import read_metadata
from icarus.cli.demo.chain import Chain, Messages, Step, TurnFigures, play
from icarus.cli.demo.report import answers_table, comparison_table, turns_table, write_json
from icarus.cli.demo.text import CONTEXT, CREW, WARM_UP, Ask
from icarus.cli.flags import read_config
from icarus.cli.local import LocalCluster, on_a_free_port, resolve_section
from icarus.cli.output_file import writable
from icarus.client import Client
from icarus.config import CacheSection, Config
from icarus.errors import ConfigError
from icarus.model.config import ModelConfig
from icarus.model.digest import base_digest
from icarus.types import AdapterMode

TRAINED = Path(icarus.__file__).parents[2] / "examples" / "specialists"
"""Where a checkout has the specialists that we trained."""
_NUM_DECODE = 2
_ANSWER_TOKENS = 96
_NONSENSE_TOKENS = 32
_WARM_UP_TURNS = 4
_POOL_BLOCKS = 1536
_THREAD_SPINS = 20000
"""Turns follow each other, so one worker computes at a time, and its threads may spin."""
_RANK = 16
_TITLES = {
    AdapterMode.SHARED: "shared: every specialist reads the base model's KV",
    AdapterMode.PRIVATE: "private: every specialist writes its own KV, the conventional way",
}


def run(args: argparse.Namespace) -> int:
    with writable("--json", args.json) as json_path:
        return _run(args, read_config(args), json_path)


def _run(args: argparse.Namespace, config: Config, json_path: Path | None) -> int:
    console = Console(highlight=False, markup=False)
    with tempfile.TemporaryDirectory(prefix="icarus-demo-") as folder:
        config = _prepare(config, console)
        shipped = Path(args.specialists or TRAINED)
        adapters, trained = _specialists(Path(config.model.path), shipped, Path(folder))
        if not trained:
            console.print(f"no specialist in {shipped} is trained for this base: all have random weights")
        entries = [f"{name}={path}" for name, path in adapters.items()]
        hosted = [entries[i::_NUM_DECODE] for i in range(_NUM_DECODE)]
        cluster = LocalCluster(
            config,
            decode_adapters=hosted,
            log_dir=args.log_dir,
            startup_seconds=args.startup_seconds,
            progress=console.print,
        )
        with cluster, Client(cluster.address) as client:
            shared, private = play_both(client, config, adapters, trained, console)
    if trained:
        console.print(answers_table([turn for turn in shared.turns if turn.specialist in trained]))
        console.print()
    console.print(comparison_table(shared, private))
    for note in (*shared.notes, *private.notes):
        console.print(f"note: {note}")
    if json_path is not None:
        settings = {**dataclasses.asdict(config), "specialists": list(adapters), "trained": trained}
        write_json(json_path, shared, private, settings)
        console.print(f"every figure is in {json_path}")
    return 0


def play_both(
    client: Client, config: Config, adapters: dict[str, Path], trained: Collection[str], console: Console
) -> tuple[Chain, Chain]:
    """The chain with shared specialists, then with the same ones loaded as private, on the same workers.

    The private ones give exactly as many tokens as the shared ones gave, so that both chains are equally long.
    """
    steps = [_step(ask, ask.specialist in trained) for ask in CREW]
    warm_up = [replace(step, num_tokens=2) for step in steps[:_WARM_UP_TURNS]]
    _check_room(config, *(_history_tokens(client, *story) for story in ((CONTEXT, steps), (WARM_UP, warm_up))))
    chains: list[Chain] = []
    for mode in (AdapterMode.SHARED, AdapterMode.PRIVATE):
        if mode is AdapterMode.PRIVATE:
            models = _load_private(client, adapters)
            lengths = [turn.completion_tokens for turn in chains[0].turns]
            steps = [
                replace(step, model=models[step.model], num_tokens=length, exact=True)
                for step, length in zip(steps, lengths, strict=True)
            ]
            warm_up = [replace(step, model=models[step.model]) for step in warm_up]
        console.print("warming up with a short conversation of another text, not counted", style="dim")
        play(client, mode, WARM_UP, warm_up)
        chains.append(_play_live(client, mode, steps, console))
    return chains[0], chains[1]


def _step(ask: Ask, is_trained: bool) -> Step:
    """Who is trained says what there is to say; random weights find no end."""
    return Step(ask.specialist, ask.messages, _ANSWER_TOKENS if is_trained else _NONSENSE_TOKENS, exact=not is_trained)


def _play_live(client: Client, mode: AdapterMode, steps: Sequence[Step], console: Console) -> Chain:
    turns: list[TurnFigures] = []
    with Live(turns_table(_TITLES[mode], turns), console=console, auto_refresh=False) as live:

        def show(turn: TurnFigures) -> None:
            turns.append(turn)
            live.update(turns_table(_TITLES[mode], turns), refresh=True)

        chain = play(client, mode, CONTEXT, steps, show)
    console.print()
    return chain


def _prepare(config: Config, console: Console) -> Config:
    """The config with the model's folder in it, a free port for the gateway and, unless the user wants others, pools
    that hold both chains and threads that spin."""
    num_blocks = config.cache.num_blocks
    return dataclasses.replace(
        config,
        cache=replace(config.cache, num_blocks=_POOL_BLOCKS if num_blocks == CacheSection().num_blocks else num_blocks),
        engine=replace(config.engine, thread_spins=config.engine.thread_spins or _THREAD_SPINS),
        model=resolve_section(config.model, console.print),
        gateway=on_a_free_port(config.gateway),
    )


def _specialists(model_folder: Path, trained: Path, folder: Path) -> tuple[dict[str, Path], list[str]]:
    """A folder for each of the crew, and the names of those that are trained for this base. The others get random
    weights: they answer nonsense, at the true cost."""
    model, digest = ModelConfig.from_folder(model_folder), base_digest(model_folder)
    names = [ask.specialist for ask in CREW]
    metadata = {name: read_metadata(trained / name) for name in names}
    fitting = [name for name, found in metadata.items() if found and found.base_digest == digest]
    folders = {
        name: trained / name
        if name in fitting
        else write_random_adapter(folder / name, model, digest, rank=_RANK, seed=seed)
        for seed, name in enumerate(names)
    }
    return folders, fitting


def _load_private(client: Client, adapters: dict[str, Path]) -> dict[str, str]:
    """Loads each specialist again as private, where its shared twin is and on the prefill workers. The new names."""
    homes = {model.name: model.worker_ids for model in client.models()}
    prefill = [worker.worker_id for worker in client.cluster().workers if worker.role == "prefill"]
    return {
        name: client.load_adapter(
            f"{name}-private", str(path), mode=AdapterMode.PRIVATE, workers=[*homes[name], *prefill]
        ).name
        for name, path in adapters.items()
    }


def _history_tokens(client: Client, context: Messages, steps: Sequence[Step]) -> list[int]:
    """How long the history may be after each turn."""
    sizes = [_count(client, step.messages) + step.num_tokens for step in steps]
    return [_count(client, context) + total for total in accumulate(sizes)]


def _count(client: Client, messages: Messages) -> int:
    session = client.create_session(messages=messages)
    num_tokens = len(session.token_ids())
    session.delete()
    return num_tokens


def _check_room(config: Config, *stories: Sequence[int]) -> None:
    """An evicted block would be computed again and spoil the figures. `stories` are lengths of histories."""
    needed = sum(
        2 + num_tokens // config.cache.block_size
        for histories in stories
        for num_tokens in [*histories, histories[-1]]  # a private namespace a turn, and the shared one
    )
    if config.cache.num_blocks < needed:
        raise ConfigError(
            f"[cache] num_blocks = {config.cache.num_blocks} is too small for the demo; it needs at least {needed}"
        )
