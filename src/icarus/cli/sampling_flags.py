"""How to answer, as flags: the names of the client's sampling options with dashes."""

import argparse

_NUMBERS: tuple[tuple[str, type, str], ...] = (
    ("max-tokens", int, "most tokens to generate"),
    ("min-tokens", int, "fewest tokens to generate: until then nothing but max-tokens ends the answer"),
    ("temperature", float, "0 is greedy"),
    ("top-p", float, "keep the likeliest tokens up to this probability, in (0, 1]"),
    ("top-k", int, "keep this many of the likeliest tokens; 0 keeps all"),
    ("min-p", float, "keep tokens at least this likely, relative to the likeliest; in [0, 1]"),
    ("frequency-penalty", float, "taken from a token's logit for each time it was generated; in [-2, 2]"),
    ("presence-penalty", float, "taken from a token's logit if it was generated at all; in [-2, 2]"),
    ("repetition-penalty", float, "weakens tokens of the prompt and the answer; above 0, and 1 changes nothing"),
    ("seed", int, "the same seed, prompt and model give the same tokens"),
    ("logprobs", int, "show each token's log-probability and those of this many alternatives; in [0, 20]"),
)


def add_sampling_flags(parser: argparse.ArgumentParser, leave_out: str = "") -> None:
    """What is not given stays out of the parsed arguments."""
    group = parser.add_argument_group("sampling", "What is not given is the gateway's default.")
    for name, kind, text in _NUMBERS:
        if name == leave_out:
            continue
        metavar = "N" if kind is int else "X"
        group.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, metavar=metavar, help=text)
    text = "end the answer before this text; may be repeated"
    group.add_argument("--stop", action="append", default=argparse.SUPPRESS, metavar="TEXT", help=text)
    text = "end the answer after this token; may be repeated"
    group.add_argument(
        "--stop-token-ids", type=int, action="append", default=argparse.SUPPRESS, metavar="ID", help=text
    )
    text = "go on past end-of-sequence tokens"
    group.add_argument("--ignore-eos", action="store_true", default=argparse.SUPPRESS, help=text)
