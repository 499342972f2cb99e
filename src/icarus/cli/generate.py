"""`icarus generate`: one answer, streamed to standard output; what it cost goes to standard error."""

import argparse
import dataclasses
import json
import sys

from icarus.cli.answer import reading, write_answer
from icarus.cli.gateway import connect
from icarus.cli.standard_input import decoding
from icarus.client import Client, TurnStream
from icarus.client.messages import Sampling
from icarus.types import TokenLogprobs

_SAMPLING = tuple(Sampling.__annotations__)
_INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""


def run(args: argparse.Namespace) -> int:
    text = args.text if args.text is not None else _read_stdin()
    with connect(args) as client:
        stream = _start(client, args, text)
        with reading(stream, of_session=args.session is not None):
            if args.json:
                for _ in stream:
                    pass
            else:
                write_answer(stream)
    if args.json and stream.is_whole:
        sys.stdout.write(json.dumps(dataclasses.asdict(stream.result()), indent=1) + "\n")
    elif not args.json:
        sys.stderr.writelines(map(_logprob_line, stream.logprobs))
    sys.stderr.write(_summary(stream) + "\n")
    return 0 if stream.is_whole else _INTERRUPTED


def _read_stdin() -> str:
    if sys.stdin.isatty():
        sys.stderr.write("reading the prompt from standard input; Ctrl-D on a line of its own ends it\n")
    with decoding():
        return sys.stdin.read()


def _start(client: Client, args: argparse.Namespace, prompt: str) -> TurnStream:
    model = args.model or client.models().base.name
    sampling = Sampling(**{name: value for name, value in vars(args).items() if name in _SAMPLING})
    text = None if args.chat else prompt
    messages = [{"role": "user", "content": prompt}] if args.chat else None
    if args.session is None:
        return client.generate(model, text, messages=messages, **sampling)
    session = client.create_session() if args.session == "new" else client.session(args.session)
    if args.session == "new":
        sys.stderr.write(f"session {session.session_id}\n")
    return session.generate(model, text, messages=messages, **sampling)


def _logprob_line(entry: TokenLogprobs) -> str:
    """The token's id and log-probability, then the likeliest ones."""
    chosen, *top = (f"{item.token_id} {item.logprob:.4f}" for item in (entry.chosen, *entry.top))
    return f"token {chosen}{' of ' if top else ''}{', '.join(top)}\n"


def _summary(stream: TurnStream) -> str:
    usage, route = stream.usage, stream.route
    if usage is None or route is None:
        return str(stream.finish_reason)
    workers = route.decode_worker if route.prefill_worker is None else f"{route.prefill_worker} > {route.decode_worker}"
    return (
        f"{stream.finish_reason}: {usage.prompt_tokens} prompt tokens ({usage.computed_tokens} computed, "
        f"{usage.local_tokens} local, {usage.remote_tokens} remote), {usage.completion_tokens} generated, "
        f"by {workers}, seed {stream.seed}"
    )
