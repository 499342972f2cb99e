"""`icarus eval`: greedy answers to a test set, and their score."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from icarus.cli.flags import read_config
from icarus.cli.output_file import writable
from icarus.client import Client
from icarus.errors import InvalidInputError
from icarus.training.card import add_score
from icarus.training.evaluate import Report, judge, write_report
from icarus.training.records import Record, read_records


def run(args: argparse.Namespace) -> int:
    if args.card and not args.adapter:
        raise InvalidInputError("--card adds the score to an adapter's model card; give --adapter")
    if args.card and not Path(args.adapter).is_dir():
        raise InvalidInputError(f"--card writes into the adapter's folder, and {args.adapter} is none")
    if args.gateway and args.oracle:
        raise InvalidInputError("--oracle computes the answers itself; give it or --gateway, not both")
    if (args.limit is not None and args.limit < 1) or args.max_tokens < 1 or args.in_flight < 1:
        raise InvalidInputError("--limit, --max-tokens and --in-flight are at least 1")
    if args.gateway and (ignored := _ignored_flags(args)):
        raise InvalidInputError(f"--gateway answers with its own model and settings; leave out {', '.join(ignored)}")
    args.model = args.model or read_config(args).model.path
    console = Console(highlight=False, markup=False)
    records = read_records(args.data)[: args.limit]
    with writable("--json", args.json) as json_path:
        report = _evaluate(args, records, console)
        console.print(report.summary())
        if json_path is not None:
            write_report(json_path, report)
            console.print(f"every answer is in {json_path}")
    if args.card:
        add_score(Path(args.adapter), report.summary())
    return 0


def _ignored_flags(args: argparse.Namespace) -> list[str]:
    """What was given and says nothing to a gateway that runs already; --nll takes the model's."""
    given = [name for name, value in vars(args).items() if "." in name or (name == "model" and value is not None)]
    used = "model" if args.nll else " "
    return [f"--{name.replace('.', '-').replace('_', '-')}" for name in given if name.partition(".")[0] != used]


def _served_base(gateway: str) -> str:
    with Client(gateway) as client:
        return client.models().base.name


def _evaluate(args: argparse.Namespace, records: list[Record], console: Console) -> Report:
    answer_loss = None
    if args.nll:
        from icarus.cli.evaluate.oracle import measure_loss

        answer_loss = measure_loss(args, records, console.print)
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
        task = progress.add_task("answers", total=len(records))
        if args.oracle:
            from icarus.cli.evaluate.oracle import answer_all
        else:
            from icarus.cli.evaluate.gateway import answer_all
        answers, seconds = answer_all(args, records, console.print, lambda count: progress.advance(task, count))
    return judge(
        records,
        answers,
        args.metric,
        seconds,
        answer_loss,
        model=_served_base(args.gateway) if args.gateway else args.model,
        adapter=Path(args.adapter).name if args.adapter else "",
        through="oracle" if args.oracle else "gateway",
        data=Path(args.data).name,
    )
