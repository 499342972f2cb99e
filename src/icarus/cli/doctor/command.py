"""`icarus doctor`: what is here, what is missing, and what to do about it. A line each: level, name, value."""

import argparse
import itertools
import sys
from collections.abc import Iterable

from icarus.cli.doctor.finding import Finding, Level
from icarus.cli.doctor.gateway import examine_gateway
from icarus.cli.doctor.machine import examine_machine
from icarus.cli.doctor.path import examine_path
from icarus.cli.gateway import client_options
from icarus.errors import InvalidInputError


def run(args: argparse.Namespace) -> int:
    """1 if anything failed; warnings are none."""
    if args.read_mib < 1:
        raise InvalidInputError(f"--read-mib is {args.read_mib}; it is at least 1")
    options = client_options(args)
    findings: Iterable[Finding] = itertools.chain(examine_machine(), examine_path(args.read_mib))
    if args.gateway is not None:
        findings = itertools.chain(findings, examine_gateway(args.gateway, **options))
    failed = False
    for finding in findings:
        sys.stdout.write(f"{finding}\n")
        sys.stdout.flush()
        failed |= finding.level is Level.FAIL
    return 1 if failed else 0
