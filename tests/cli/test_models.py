"""The table of `icarus models`."""

from rich.console import Console

from icarus.cli.models import models_table
from icarus.client.results import Model, ModelList
from icarus.types import AdapterMode


def test_it_says_who_has_an_adapter_and_who_holds_its_weights():
    base = Model("tiny", True, None, "", ("decode-0", "decode-1"), False, ("decode-0", "decode-1"))
    pinned = Model("a", False, AdapterMode.SHARED, "ab" * 32, ("decode-0", "decode-1"), True, ("decode-0", "decode-1"))
    evicted = Model("b", False, AdapterMode.PRIVATE, "cd" * 32, ("decode-0",))
    console = Console(width=150)
    with console.capture() as capture:
        console.print(models_table(ModelList((base, pinned, evicted), 2048)))
    header, *rows, caption = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert header == "model kind workers in memory on digest"
    assert rows == [
        "tiny base decode-0, decode-1 decode-0, decode-1",
        "a shared decode-0, decode-1 decode-0, decode-1 (pinned) abababababab",
        "b private decode-0 - cdcdcdcdcdcd",
    ]
    assert caption == "context length 2048"
