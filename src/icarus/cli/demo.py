"""`icarus demo`: one conversation through eight specialists, with one KV cache and then the conventional way."""

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from icarus.adapters.generate import write_random_adapter
from icarus.cli.demo_chain import Chain, Plan, TurnFigures, play
from icarus.cli.demo_report import comparison_table, turns_table, write_json
from icarus.cli.demo_text import CONVERSATION
from icarus.cli.flags import read_config
from icarus.cli.local import LocalCluster, resolve_section
from icarus.cli.output_file import writable
from icarus.client import Client
from icarus.config import Config
from icarus.errors import ConfigError
from icarus.model.config import ModelConfig
from icarus.model.digest import base_digest
from icarus.types import AdapterMode

SPECIALISTS = ("triage", "diagnose", "plan", "tools", "check", "write", "translate", "summarise")
_NUM_DECODE = 2
_RANK = 16
_TITLES = {
    AdapterMode.SHARED: "shared: every specialist reads the base model's KV",
    AdapterMode.PRIVATE: "private: every specialist writes its own KV, the conventional way",
}


def run(args: argparse.Namespace) -> int:
    config = read_config(args)
    json_path = writable("--json", args.json) if args.json else None
    console = Console(highlight=False, markup=False)
    with tempfile.TemporaryDirectory(prefix="icarus-demo-") as folder:
        config = _prepare(config, console)
        adapters = _make_specialists(Path(config.model.path), Path(folder))
        hosted = [[f"{name}={adapters[name]}" for name in SPECIALISTS[i::_NUM_DECODE]] for i in range(_NUM_DECODE)]
        cluster = LocalCluster(
            config,
            decode_adapters=hosted,
            log_dir=args.log_dir,
            startup_seconds=args.startup_seconds,
            progress=console.print,
        )
        with cluster, Client(cluster.address) as client:
            shared, private = play_both(client, config, Plan(num_turns=len(SPECIALISTS)), adapters, console)
    console.print(comparison_table(shared, private))
    for note in (*shared.notes, *private.notes):
        console.print(f"note: {note}")
    if json_path is not None:
        settings = {**dataclasses.asdict(config), "specialists": SPECIALISTS}
        write_json(json_path, shared, private, settings)
        console.print(f"every figure is in {json_path}")
    return 0


def play_both(
    client: Client, config: Config, plan: Plan, adapters: dict[str, Path], console: Console
) -> tuple[Chain, Chain]:
    """The chain with shared specialists, then with the same ones loaded as private, on the same workers."""
    warm_up = Plan(4, config.gateway.prefill_threshold_tokens + 2 * config.cache.block_size, 2, config.cache.block_size)
    _check_room(config, plan, warm_up)
    text_ids = _tokenise(client, CONVERSATION)
    inputs, warm_up_inputs = plan.inputs(text_ids), warm_up.inputs(text_ids, skip=len(text_ids) // 2)
    chains = []
    for mode in (AdapterMode.SHARED, AdapterMode.PRIVATE):
        models = _load_private(client, adapters) if mode is AdapterMode.PRIVATE else list(adapters)
        console.print("warming up with a short conversation of another text, not counted", style="dim")
        play(client, mode, models[: warm_up.num_turns], warm_up_inputs, warm_up.output_tokens)
        chains.append(_play_live(client, mode, models, inputs, plan.output_tokens, console))
    return chains[0], chains[1]


def _play_live(
    client: Client,
    mode: AdapterMode,
    models: Sequence[str],
    inputs: Sequence[Sequence[int]],
    output_tokens: int,
    console: Console,
) -> Chain:
    turns: list[TurnFigures] = []
    with Live(turns_table(_TITLES[mode], turns), console=console, auto_refresh=False) as live:

        def show(turn: TurnFigures) -> None:
            turns.append(turn)
            live.update(turns_table(_TITLES[mode], turns), refresh=True)

        chain = play(client, mode, models, inputs, output_tokens, show)
    console.print()
    return chain


def _prepare(config: Config, console: Console) -> Config:
    """The config with the model's folder in it and a free port for the gateway."""
    return dataclasses.replace(
        config,
        model=resolve_section(config.model, console.print),
        gateway=dataclasses.replace(config.gateway, address="127.0.0.1:0"),
    )


def _make_specialists(model_folder: Path, folder: Path) -> dict[str, Path]:
    """A random adapter with non-zero B for each specialist: they answer nonsense, at the true cost."""
    model, digest = ModelConfig.from_folder(model_folder), base_digest(model_folder)
    return {
        name: write_random_adapter(folder / name, model, digest, rank=_RANK, seed=seed)
        for seed, name in enumerate(SPECIALISTS)
    }


def _load_private(client: Client, adapters: dict[str, Path]) -> list[str]:
    """Loads each specialist again as private, where its shared twin is and on the prefill workers."""
    homes = {model.name: model.worker_ids for model in client.models()}
    prefill = [worker.worker_id for worker in client.cluster().workers if worker.role == "prefill"]
    return [
        client.load_adapter(
            f"{name}-private", str(path), mode=AdapterMode.PRIVATE, workers=[*homes[name], *prefill]
        ).name
        for name, path in adapters.items()
    ]


def _tokenise(client: Client, text: str) -> tuple[int, ...]:
    session = client.create_session(text)
    token_ids = session.token_ids()
    session.delete()
    return token_ids


def _check_room(config: Config, plan: Plan, warm_up: Plan) -> None:
    """An evicted block would be computed again and spoil the figures."""
    needed = sum(
        2 + each.history_tokens(turn) // config.cache.block_size
        for each in (plan, warm_up)
        for turn in [*range(each.num_turns), each.num_turns - 1]  # a private namespace a turn, and the shared one
    )
    if config.cache.num_blocks < needed:
        raise ConfigError(
            f"[cache] num_blocks = {config.cache.num_blocks} is too small for the demo; it needs at least {needed}"
        )
