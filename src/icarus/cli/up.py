"""`icarus up`: a whole deployment on this machine, in the foreground."""

import argparse
import sys

from icarus.cli.flags import read_config
from icarus.cli.local import LocalCluster, unheeded
from icarus.cli.sigterm import sigterm_exits
from icarus.errors import InvalidInputError


def run(args: argparse.Namespace) -> int:
    for flag, number, least in (("--num-decode", args.num_decode, 1), ("--num-prefill", args.num_prefill, 0)):
        if number < least:
            raise InvalidInputError(f"{flag} is {number}; it must be at least {least}")
    config = read_config(args)
    for line in unheeded(config):
        sys.stderr.write(f"icarus: warning: {line}\n")
    adapters = config.worker.adapters
    cluster = LocalCluster(
        config,
        decode_adapters=[adapters] * args.num_decode,
        prefill_adapters=adapters,
        num_prefill=args.num_prefill,
        log_dir=args.log_dir,
        startup_seconds=args.startup_seconds,
        progress=_say,
    )
    with sigterm_exits(), cluster:
        _say(f"the gateway answers at {cluster.address}; logs are in {cluster.log_dir}; Ctrl-C stops everything")
        _say(f"try: icarus generate --gateway {cluster.address} --chat 'Why is the sky blue?'")
        cluster.watch()
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
