"""`icarus adapters`: loads specialists at a running gateway, unloads and pins them. `icarus models` lists them."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable

from icarus.cli.gateway import connect
from icarus.client import Client


def run(args: argparse.Namespace) -> int:
    with connect(args) as client:
        told = _ACTIONS[args.action](client, args)
    sys.stdout.write(told + "\n")
    return 0


def _load(client: Client, args: argparse.Namespace) -> str:
    model = client.load_adapter(args.name, args.folder, args.mode, args.worker, replace=args.replace, pin=args.pin)
    if args.json:
        return json.dumps(dataclasses.asdict(model), indent=1)
    pinned = ", pinned" if model.pinned else ""
    return f"{model.name} is loaded on {', '.join(model.worker_ids)} ({model.mode}, {model.digest[:12]}{pinned})"


def _unload(client: Client, args: argparse.Namespace) -> str:
    client.unload_adapter(args.name)
    return f"{args.name} is unloaded"


def _pin(client: Client, args: argparse.Namespace) -> str:
    client.pin_adapter(args.name)
    return f"{args.name} is pinned: its weights stay in memory"


def _unpin(client: Client, args: argparse.Namespace) -> str:
    client.pin_adapter(args.name, pinned=False)
    return f"{args.name} is no longer pinned"


_ACTIONS: dict[str, Callable[[Client, argparse.Namespace], str]] = {
    "load": _load,
    "unload": _unload,
    "pin": _pin,
    "unpin": _unpin,
}
