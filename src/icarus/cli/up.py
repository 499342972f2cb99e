"""`icarus up`: a whole deployment on this machine, in the foreground."""

import argparse
import sys

from icarus.cli.flags import read_config
from icarus.cli.local import LocalCluster
from icarus.cli.sigterm import sigterm_exits
from icarus.errors import InvalidInputError


def run(args: argparse.Namespace) -> int:
    if args.num_decode < 1 or args.num_prefill < 0:
        raise InvalidInputError("there is at least one decode worker and no less than zero prefill workers")
    config = read_config(args)
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
