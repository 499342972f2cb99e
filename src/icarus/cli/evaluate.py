"""`icarus eval`: greedy answers to a test set, and their score."""

import argparse
import asyncio
import dataclasses
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from icarus.cli.flags import read_config
from icarus.cli.gateway import client_options
from icarus.cli.local import LocalCluster, on_a_free_port
from icarus.cli.output_file import writable
from icarus.cli.sigterm import sigterm_exits
from icarus.client import Client
from icarus.config import Config
from icarus.errors import InvalidInputError
from icarus.evaluation.report import Answer, Report, judge, write_report
from icarus.evaluation.through_gateway import answer_all
from icarus.training.card import add_score, card_file
from icarus.training.records import Record, read_records

if TYPE_CHECKING:
    from icarus.evaluation.reference import Reference

_LOCAL_NAME = "evaluated"
"""Of the specialist, at a gateway that is started here."""


def run(args: argparse.Namespace) -> int:
    connection = client_options(args)
    if args.card and not args.adapter:
        raise InvalidInputError("--card adds the score to an adapter's model card; give --adapter")
    if args.card and not Path(args.adapter).is_dir():
        raise InvalidInputError(f"--card writes into the adapter's folder, and {args.adapter} is none")
    if args.gateway and args.oracle:
        raise InvalidInputError("--oracle computes the answers itself; give it or --gateway, not both")
    for flag, number in (("--limit", args.limit), ("--max-tokens", args.max_tokens), ("--in-flight", args.in_flight)):
        if number is not None and number < 1:
            raise InvalidInputError(f"{flag} is {number}; it must be at least 1")
    if args.gateway and (ignored := _ignored_flags(args)):
        raise InvalidInputError(f"--gateway answers with its own model and settings; leave out {', '.join(ignored)}")
    if args.gateway and args.nll and not args.model:
        raise InvalidInputError(f"--nll computes a loss of its own: give --model, the base that {args.gateway} serves")
    if args.nll and args.adapter and not Path(args.adapter).is_dir():
        raise InvalidInputError(f"--nll computes with the adapter's folder, and {args.adapter} is none")
    args.model = args.model or read_config(args).model.path
    console = Console(highlight=False, markup=False)
    records = read_records(args.data)[: args.limit]
    card = str(card_file(args.adapter)) if args.card else None
    with sigterm_exits(), writable("--card", card):
        with writable("--json", args.json) as json_path:
            report = _evaluate(args, connection, records, console)
            console.print(report.summary(), soft_wrap=True)
            if json_path is not None:
                write_report(json_path, report)
                console.print(f"every answer is in {json_path}", soft_wrap=True)
        if args.card:
            add_score(Path(args.adapter), report.summary())
    return 0


def _ignored_flags(args: argparse.Namespace) -> list[str]:
    """What was given and says nothing to a gateway that runs already; --nll takes the model's."""
    given = [name for name, value in vars(args).items() if "." in name or (name == "model" and value is not None)]
    used = "model" if args.nll else " "
    return [f"--{name.replace('.', '-').replace('_', '-')}" for name in given if name.partition(".")[0] != used]


def _evaluate(args: argparse.Namespace, connection: dict[str, Any], records: list[Record], console: Console) -> Report:
    served = _served_base(args, connection) if args.gateway else ""
    answer_loss = _answer_loss(args, records, console) if args.nll else None
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
        task = progress.add_task("answers", total=len(records))
        answers, seconds = _answer_all(args, connection, records, console, lambda count: progress.advance(task, count))
    return judge(
        records,
        answers,
        args.metric,
        seconds,
        answer_loss,
        model=served or args.model,
        adapter=Path(args.adapter).name if args.adapter else "",
        through="oracle" if args.oracle else "gateway",
        data=Path(args.data).name,
    )


def _answer_loss(args: argparse.Namespace, records: list[Record], console: Console) -> float:
    """Computed before the answers: what it refuses is known soon. Leaves the device's memory to whoever gives those."""
    import torch

    loss = _load_reference(args, console).mean_loss(records, args.in_flight)
    gc.collect()  # a model may be in a cycle
    torch.cuda.empty_cache()
    return loss


def _answer_all(
    args: argparse.Namespace,
    connection: dict[str, Any],
    records: list[Record],
    console: Console,
    advance: Callable[[int], None],
) -> tuple[list[Answer], float]:
    asked = (records, args.max_tokens, args.in_flight, advance)
    if args.oracle:
        return _load_reference(args, console).answer_all(*asked)
    if args.gateway:
        return asyncio.run(answer_all(args.gateway, args.adapter, *asked, _warn, **connection))
    adapters = [f"{_LOCAL_NAME}={Path(args.adapter).resolve()}"] if args.adapter else []
    with LocalCluster(_config(args), decode_adapters=[adapters], num_prefill=0, progress=console.print) as cluster:
        return asyncio.run(answer_all(cluster.address, _LOCAL_NAME if args.adapter else None, *asked, _warn))


def _load_reference(args: argparse.Namespace, console: Console) -> "Reference":
    from transformers.utils.logging import disable_progress_bar

    from icarus.evaluation.reference import Reference
    from icarus.model.hub import resolve_model

    disable_progress_bar()
    config = read_config(args).model
    adapter = Path(args.adapter) if args.adapter else None
    return Reference(resolve_model(args.model, console.print), adapter, config.dtype, config.device)


def _config(args: argparse.Namespace) -> Config:
    config = read_config(args)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=args.model),
        gateway=on_a_free_port(config.gateway),
    )


def _served_base(args: argparse.Namespace, connection: dict[str, Any]) -> str:
    """The name of the gateway's base. Raises InvalidInputError where the loss or the score would be that of another."""
    with Client(args.gateway, **connection) as client:
        models = client.models()
    served = models.base.name
    if (args.nll or args.card) and args.adapter in models:
        uses = "--nll computes with" if args.nll else "--card writes into"
        raise InvalidInputError(
            f"{uses} the adapter's folder, but {args.adapter} is a name that {args.gateway} serves; if "
            f"there is a folder of that name, give ./{args.adapter}"
        )
    if args.nll and (own := _config(args).model.served_name) != served:
        raise InvalidInputError(
            f"--nll would compute the loss of {own!r} (--model {args.model}), but {args.gateway} serves {served!r}; "
            f"give that one, or --model-name {served} if they are the same model"
        )
    return served


def _warn(line: str) -> None:
    sys.stderr.write(f"icarus: warning: {line}\n")
