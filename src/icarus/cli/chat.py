"""`icarus chat`: one conversation in the terminal, passed from specialist to specialist.

Answers go to standard output, everything else to standard error, so that it works in a pipe too: each line of the input
is a message or a command, and the first turn that fails ends the program.
"""

import argparse
import sys
from collections.abc import Callable, Iterator

from icarus.cli.answer import reading, write_answer
from icarus.cli.gateway import connect
from icarus.cli.models import show_models
from icarus.cli.standard_input import decoding
from icarus.client import Client, Session, TurnStream
from icarus.client.messages import Sampling
from icarus.errors import IcarusError, InvalidInputError, NotFoundError
from icarus.types import FinishReason, Usage

_SAMPLING = tuple(Sampling.__annotations__)
_HELP = """\
/as NAME      let another specialist answer from here on
/models       list what can be asked for
/fork         go on in a copy of this conversation; the original stays as it is
/session [ID] show this conversation's id, or go to another one
/help         this list
/quit         leave (so does Ctrl-D); the conversation stays on the gateway until it expires
//text        a message that begins with a slash
Ctrl-C stops an answer; that turn is then no part of the conversation.
"""


def run(args: argparse.Namespace) -> int:
    with connect(args) as client:
        Chat(client, args).run(_typed_lines if _is_terminal() else _piped_lines)
    return 0


class Chat:
    """A session, who answers in it, and how."""

    def __init__(self, client: Client, args: argparse.Namespace):
        self._client = client
        self._plain = args.plain
        self._sampling = Sampling(**{name: value for name, value in vars(args).items() if name in _SAMPLING})
        self._model = self._known(args.model) if args.model else client.models().base.name
        self._session = self._open(args.session, args.system)

    def run(self, read_lines: Callable[[Callable[[], str]], Iterator[str]]) -> None:
        """Until the lines end or /quit. In a terminal an error is shown and the conversation goes on."""
        _say(f"session {self._session.session_id}; /help lists the commands")
        for line in read_lines(lambda: f"{self._model}> "):
            try:
                if self._act(line.strip()):
                    return
            except IcarusError as error:
                if read_lines is _piped_lines:
                    raise
                _say(f"error: {error}")
            except KeyboardInterrupt:
                _say("stopped")

    def _act(self, line: str) -> bool:
        """Does what a line says; whether it was /quit."""
        if not line:
            return False
        if line.startswith("//") or not line.startswith("/"):
            self._ask(line.removeprefix("/") if line.startswith("//") else line)
            return False
        name, _, argument = line[1:].partition(" ")
        if name == "quit":
            return True
        commands = {
            "as": self._change_model,
            "models": self._list_models,
            "fork": self._fork,
            "session": self._change_session,
            "help": lambda _: _say(_HELP.rstrip()),
        }
        if name not in commands:
            raise InvalidInputError(f"unknown command /{name}; /help lists them")
        commands[name](argument.strip())
        return False

    def _ask(self, text: str) -> None:
        _say(_summary(self._stream(text)))

    def _stream(self, text: str) -> TurnStream:
        """Shows an answer as it comes. Ctrl-C stops it."""
        stream = self._generate(text)
        with reading(stream, of_session=True):
            write_answer(stream)
        return stream

    def _generate(self, text: str) -> TurnStream:
        if self._plain:
            return self._session.generate(self._model, text, **self._sampling)
        message = {"role": "user", "content": text}
        return self._session.generate(self._model, messages=[message], **self._sampling)

    def _open(self, session_id: str | None, system: str | None) -> Session:
        if session_id is not None:
            return self._existing(session_id)
        messages = None if system is None else [{"role": "system", "content": system}]
        return self._client.create_session(messages=messages)

    def _existing(self, session_id: str) -> Session:
        session = self._client.session(session_id)
        session.get()
        return session

    def _known(self, name: str) -> str:
        models = self._client.models()
        if name not in models:
            raise NotFoundError(f"there is no model {name!r}; there are {', '.join(models.names)}")
        return name

    def _change_model(self, name: str) -> None:
        if not name:
            raise InvalidInputError("/as takes the name of a specialist; /models lists them")
        self._model = self._known(name)
        _say(f"{name} answers from here on")

    def _list_models(self, _: str) -> None:
        show_models(self._client.models(), stderr=True)

    def _fork(self, _: str) -> None:
        original, self._session = self._session, self._session.fork()
        _say(f"session {self._session.session_id}, a copy of {original.session_id}")

    def _change_session(self, session_id: str) -> None:
        if session_id:
            self._session = self._existing(session_id)
        _say(f"session {self._session.session_id}")


def _summary(stream: TurnStream) -> str:
    if stream.finish_reason is FinishReason.CANCELLED or stream.usage is None:
        return "stopped; this turn is no part of the conversation"
    cut = "; cut off: --max-tokens allows more" if stream.finish_reason is FinishReason.LENGTH else ""
    return cached_share(stream.usage) + cut


def cached_share(usage: Usage) -> str:
    """What of a prompt was cached, and what of it other specialists wrote; both as shares of the whole prompt."""
    prompt = usage.prompt_tokens
    text = f"prompt {prompt:,} tokens: {_percent(usage.cached_tokens, prompt)} from cache"
    if usage.cross_adapter_tokens:
        text += f" ({_percent(usage.cross_adapter_tokens, prompt)} written by other specialists)"
    return text


def _percent(part: int, whole: int) -> str:
    return f"{100 * part // max(whole, 1)} %"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _piped_lines(prompt: Callable[[], str]) -> Iterator[str]:
    with decoding():
        yield from sys.stdin


def _typed_lines(prompt: Callable[[], str]) -> Iterator[str]:
    """Lines with readline's editing and history. Ctrl-C empties the line, Ctrl-D ends."""
    import readline  # noqa: F401  # input() uses it once it is imported

    while True:
        try:
            yield input(prompt())
        except KeyboardInterrupt:
            sys.stdout.write("\n")
        except EOFError:
            sys.stdout.write("\n")
            return
