"""The commands and their flags. A command's code is imported when it runs: help is quick and needs no torch."""

import argparse
import importlib
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from icarus import __version__
from icarus.cli import sections
from icarus.cli.bench.flags import BENCHMARKS
from icarus.cli.flags import add_flags
from icarus.cli.sampling_flags import add_sampling_flags
from icarus.cli.train_flags import add_train_flags
from icarus.config import GatewaySection, ModelSection, describe
from icarus.errors import InvalidInputError
from icarus.types import DEFAULT_TENANT, AdapterMode

_GATEWAY_ADDRESS = GatewaySection().address


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The command's own parser refuses what it does not know, and names its own help."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        raise InvalidInputError(f"{message} (see '{self.prog} --help')")


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def build_parser() -> argparse.ArgumentParser:
    """Parsing raises InvalidInputError for a wrong command line. The result's `run(args)` gives the exit code."""
    parser = _Parser(
        prog="icarus",
        description="Serve many LoRA specialists of one base model from one KV cache.",
        epilog="First steps: 'icarus demo' shows what it is for. 'icarus up' starts everything on this machine; "
        "'icarus generate' then talks to it.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"icarus {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_up(commands)
    _add_generate(commands)
    _add_chat(commands)
    _add_models(commands)
    _add_adapters(commands)
    _add_demo(commands)
    _add_doctor(commands)
    _add_health(commands)
    _add_pull(commands)
    _add_train(commands)
    _add_eval(commands)
    _add_bench(commands)
    return parser


def _add(commands: _Commands, name: str, text: str, module: str = "") -> _Parser:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
    if module:
        parser.set_defaults(run=_lazily(module))
    return parser


def _lazily(module: str) -> Callable[[argparse.Namespace], int]:
    return lambda args: importlib.import_module(f"icarus.cli.{module}").run(args)


def _add_serve(commands: _Commands) -> None:
    serve = _add(commands, "serve", "run one process of a deployment")
    roles = serve.add_subparsers(title="processes", metavar="PROCESS", required=True)
    for role, text in (
        ("gateway", "run what clients talk to: sessions, tokenisation, routing; needs no torch"),
        ("prefill", "run a worker that writes the KV of long prompts"),
        ("decode", "run a worker that generates tokens with specialists"),
    ):
        parser = _add(roles, role, text, "serve")
        add_flags(parser, sections.of_process(role))
        levels = ("debug", "info", "warning", "error")
        parser.add_argument("--log-level", default="info", choices=levels, help="(default: info)")
        parser.add_argument("--stop-with-stdin", action="store_true", help=argparse.SUPPRESS)
        parser.set_defaults(role=role)


def _add_up(commands: _Commands) -> None:
    parser = _add(commands, "up", "start a gateway and its workers on this machine, until Ctrl-C", "up")
    parser.description = (
        f"{parser.description} Whatever --config says, each worker gets an id, address, advertise and gateways of its "
        "own, and drain_seconds are 10 at most."
    )
    parser.add_argument("--num-prefill", type=int, default=1, metavar="N", help="prefill workers (default: 1)")
    parser.add_argument("--num-decode", type=int, default=1, metavar="N", help="decode workers (default: 1)")
    _add_local_flags(parser)
    add_flags(parser, sections.UP)


def _add_demo(commands: _Commands) -> None:
    text = "play one conversation through eight specialists, with one KV cache and then with eight"
    parser = _add(commands, "demo", text, "demo.command")
    parser.add_argument("--json", metavar="FILE", help="write every figure to this file")
    text = "trained specialists, a folder each (default: examples/specialists of this checkout)"
    parser.add_argument("--specialists", metavar="FOLDER", help=text)
    _add_local_flags(parser)
    add_flags(parser, sections.DEMO)


def _add_train(commands: _Commands) -> None:
    parser = _add(commands, "train", "fine-tune a specialist, which reads the base model's KV", "train")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the specialist goes, with its log")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in that folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in that folder")
    add_train_flags(parser)


def _add_eval(commands: _Commands) -> None:
    parser = _add(commands, "eval", "score a specialist's greedy answers to a test set, as it is served", "evaluate")
    text = "the base model, as for icarus train (default: [model] path of --config, smollm2 without one)"
    parser.add_argument("--model", metavar="TEXT", help=text)
    text = "the specialist's folder, or the name it is served by at --gateway (default: the base model)"
    parser.add_argument("--adapter", metavar="FOLDER", help=text)
    parser.add_argument("--data", required=True, metavar="FILE", help="JSONL, as for icarus train")
    text = "exact text, equal JSON, equal final number, or equal label"
    parser.add_argument("--metric", required=True, choices=("exact", "json", "number", "label"), help=text)
    parser.add_argument("--limit", type=int, metavar="N", help="the first examples alone")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="longest answer (default: 128)")
    text = "turns at a time, or the oracle's batch (default: 16)"
    parser.add_argument("--in-flight", type=int, default=16, metavar="N", help=text)
    parser.add_argument("--oracle", action="store_true", help="answer by transformers and peft, not by serving")
    parser.add_argument("--nll", action="store_true", help="also the loss of the right answers, by the training code")
    text = "ask a gateway that runs already (default: start one, and a decode worker, for this)"
    parser.add_argument("--gateway", metavar="HOST:PORT", help=text)
    _add_connection_flags(parser)
    parser.add_argument("--json", metavar="FILE", help="write the score and every answer to this file")
    parser.add_argument("--card", action="store_true", help="add the score to the adapter's model card")
    add_flags(parser, sections.EVAL)


def _add_bench(commands: _Commands) -> None:
    bench = _add(commands, "bench", "measure this machine: the engine, specialists, transfers, kernels, another server")
    benchmarks = bench.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    for name, benchmark in BENCHMARKS.items():
        parser = _add(benchmarks, name, benchmark.text, "bench.command")
        parser.set_defaults(benchmark=name)
        benchmark.add_flags(parser)
        parser.add_argument("--json", metavar="FILE", help="write every figure to this file")
        parser.add_argument("--plot", metavar="FILE", help="draw the curves: .png, .svg or .pdf")
        if benchmark.sections:
            add_flags(parser, benchmark.sections)


def _add_local_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log-dir", metavar="FOLDER", help="where each process logs (default: a temporary folder)")
    text = "limit for the start (default: 300)"
    parser.add_argument("--startup-seconds", type=float, default=300.0, metavar="X", help=text)


def _add_models(commands: _Commands) -> None:
    parser = _add(commands, "models", "list what a gateway serves", "models")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    _add_client_flags(parser)


def _add_adapters(commands: _Commands) -> None:
    adapters = _add(commands, "adapters", "load specialists at a running gateway, unload and pin them")
    actions = adapters.add_subparsers(title="actions", metavar="ACTION", required=True)
    for action, text in (
        ("load", "load a PEFT folder under a name; 'icarus models' lists what is loaded"),
        ("unload", "unload a specialist everywhere; running turns finish on the weights they began with"),
        ("pin", "keep a specialist's weights in every worker's memory"),
        ("unpin", "let a specialist's weights be evicted again when slots run out"),
    ):
        parser = _add(actions, action, text, "adapters")
        parser.add_argument("name", help="the name that turns ask for")
        if action == "load":
            _add_load_flags(parser)
        _add_client_flags(parser)
        parser.set_defaults(action=action)


def _add_load_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="the PEFT folder, as the workers see it")
    text = "whose KV it reads: the base's, or its own (default: what its icarus.json says)"
    parser.add_argument("--mode", choices=[mode.value for mode in AdapterMode], help=text)
    text = "put it in the place of other weights of this name; running turns keep those"
    parser.add_argument("--replace", action="store_true", help=text)
    parser.add_argument("--pin", action="store_true", help="keep its weights in memory")
    text = "a worker that loads it (default: every suitable one); may be repeated"
    parser.add_argument("--worker", action="append", default=[], metavar="ID", help=text)
    parser.add_argument("--json", action="store_true", help="print what was loaded as JSON")


def _add_generate(commands: _Commands) -> None:
    parser = _add(commands, "generate", "ask a model and print the answer as it comes", "generate")
    parser.add_argument("text", nargs="?", help="the prompt; read from standard input when absent")
    parser.add_argument("--model", metavar="NAME", help="a specialist (default: the base model)")
    parser.add_argument("--chat", action="store_true", help="send the prompt as a user's chat message, not as it is")
    parser.add_argument("--session", metavar="ID", help="go on with this session; 'new' opens one and shows its id")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON when it is there")
    _add_client_flags(parser)
    add_sampling_flags(parser)


def _add_chat(commands: _Commands) -> None:
    parser = _add(commands, "chat", "hold a conversation that passes from specialist to specialist", "chat")
    parser.add_argument("--model", metavar="NAME", help="who answers first (default: the base model)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--session", metavar="ID", help="go on with this conversation (default: a new one)")
    start.add_argument("--system", metavar="TEXT", help="the system message that a new conversation begins with")
    text = "send lines as they are, without the model's chat template"
    parser.add_argument("--plain", action="store_true", help=text)
    _add_client_flags(parser)
    add_sampling_flags(parser, leave_out="logprobs")


def _add_doctor(commands: _Commands) -> None:
    parser = _add(commands, "doctor", "check this machine, and a gateway if one is named", "doctor.command")
    text = "also check the gateway that listens here, and its workers"
    parser.add_argument("--gateway", "--address", metavar="HOST:PORT", help=text)
    _add_connection_flags(parser, timeout="10")
    text = "MiB to read when the path between two processes is measured (default: 256)"
    parser.add_argument("--read-mib", type=int, default=256, metavar="N", help=text)


def _add_health(commands: _Commands) -> None:
    parser = _add(
        commands, "health", "ask a gateway or worker whether it serves; the exit code is 0 if it does", "health"
    )
    parser.add_argument("address", metavar="HOST:PORT", help="where it listens")
    text = "seconds until no answer is one (default: 5)"
    parser.add_argument("--timeout", type=float, default=5.0, metavar="X", help=text)


def _add_pull(commands: _Commands) -> None:
    parser = _add(
        commands, "pull", "fetch a model into a folder, converted if need be; keeps one that is there", "pull"
    )
    parser.add_argument("model", help=describe(ModelSection, "path"))
    parser.add_argument("folder", help="where it goes: --model-path of every process")


def _add_client_flags(parser: argparse.ArgumentParser) -> None:
    text = f"the gateway to talk to (default: {_GATEWAY_ADDRESS})"
    parser.add_argument("--gateway", default=_GATEWAY_ADDRESS, metavar="HOST:PORT", help=text)
    _add_connection_flags(parser)


def _add_connection_flags(parser: argparse.ArgumentParser, timeout: str = "none") -> None:
    """How to talk to `--gateway`. `timeout`: the default's name."""
    text = f"whose sessions and cache (default: {DEFAULT_TENANT})"
    parser.add_argument("--tenant", metavar="NAME", help=text)
    text = f"seconds until a call is given up (default: {timeout})"
    parser.add_argument("--timeout", type=float, metavar="X", help=text)
    parser.add_argument("--tls", action="store_true", help="speak TLS, as to a proxy before the gateway")
    text = "a header of every call, such as authorization=...; may be repeated"
    parser.add_argument("--header", action="append", default=[], metavar="NAME=VALUE", help=text)
