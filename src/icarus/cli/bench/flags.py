"""The flags of `icarus bench`: what each benchmark measures, how often and how much. Lengths are in tokens."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from icarus.cli import sections
from icarus.cli.flags import Sections

PEER_SERVERS = ("fast", "nolora", "icarus", "icarus-prefill")
"""vLLM with eight LoRAs, and without any; a gateway with a decode worker, and with a prefill worker as well."""

MODEL_SHAPES = ("llama-3.1-8b", "smollm2-135m")


@dataclass(frozen=True)
class Benchmark:
    """One of `icarus bench`'s commands."""

    text: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    sections: Sections


def _add_engine_flags(parser: argparse.ArgumentParser) -> None:
    _add_random_weights(parser)
    _add(parser, "--prefill-tokens", _count, 2048, "length of the prompts that are prefilled")
    _add(parser, "--batches", _counts, (1, 8, 32), "requests that decode together")
    _add(parser, "--decode-context", _count, 512, "length of their prompts")
    _add(parser, "--paired-batch", _count, 8, "requests of the paired step")
    _add(parser, "--paired-context", _count, 1024, "length of their prompts")
    _add(parser, "--steps", _count, 32, "timed decode steps")
    _add(parser, "--repetitions", _count, 5, "timed prefills")
    _add(parser, "--specialists", _count, 8, "specialists that the requests take in turn")
    _add(parser, "--rank", _count, 16, "of the generated specialists")


def _add_agents_flags(parser: argparse.ArgumentParser) -> None:
    text = "4 sizes, 5 rates, both routings, 128 turns a point and tight KV in both loops: hours on a CPU"
    parser.add_argument("--full", action="store_true", help=text)
    _add_random_weights(parser)
    _add(parser, "--agents", _counts, None, "numbers of specialists (default: 1,8; with --full 1,2,4,8)")
    _add(parser, "--workflows", _count, 8, "workflows of the closed loop, side by side")
    _add(parser, "--turns", _count, 8, "turns of a workflow")
    _add(parser, "--context-tokens", _count, 1024, "length of a workflow's first prompt")
    _add(parser, "--output-tokens", _count, 32, "length of an answer")
    _add(parser, "--min-delta-tokens", _count, 1, "fewest tokens of an answer that come at once")
    _add(parser, "--observation-tokens", _count, 64, "what comes new with each turn of the closed loop")
    _add(parser, "--evicting-agents", _counts, None, "specialists where KV is tight (default: 4; with --full 2,4)")
    parser.add_argument("--data", metavar="FOLDER", help="ReAct's prompts and questions, for the open loop")
    _add(parser, "--rates", _rates, None, "turns a second offered (default: 1,2,4; with --full 0.5,1,2,4,8)")
    _add(parser, "--open-workflows", _count, None, "workflows of an open loop (default: 5; with --full 16)")
    _add(parser, "--open-observation-tokens", _count, 320, "what comes new with each turn of the open loop")
    _add(parser, "--kv-gib", _rate, 4.0, "most memory that a worker's pool may take")
    _add(parser, "--num-prefill", int, 0, "prefill workers")
    _add(parser, "--num-decode", _count, 1, "decode workers; each has every specialist")
    _add(parser, "--rank", _count, 16, "of the generated specialists")
    _add(parser, "--startup-seconds", _rate, 300.0, "limit for each start of the processes")


def _add_transfer_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="whose memory (default: cpu)")
    text = "bytes of a block (default: 368640, 16 tokens of SmolLM2-135M in bfloat16)"
    parser.add_argument("--block-bytes", type=_count, default=368_640, metavar="N", help=text)
    _add(parser, "--blocks", _counts, (1, 4, 16, 64, 256), "blocks of a read")
    _add(parser, "--repetitions", _count, 20, "timed reads of each size")


def _add_peer_flags(parser: argparse.ArgumentParser) -> None:
    text = "the peer's scripts: serve.sh, workload.py"
    parser.add_argument("--peer", required=True, metavar="FOLDER", help=text)
    text = "where its setup.sh put vLLM, the model and the adapters"
    parser.add_argument("--installed", required=True, metavar="FOLDER", help=text)
    text = "only these, in this order; may be repeated (default: all four)"
    parser.add_argument("--server", action="append", choices=PEER_SERVERS, help=text)
    _add(parser, "--workflows", _count, 8, "workflows of the agents job, side by side")
    _add(parser, "--turns", _count, 8, "turns of each")
    text = "memory of the pools of a server's workers together; serve.sh gives vLLM 3"
    _add(parser, "--kv-gib", _rate, 3.0, text)
    _add(parser, "--startup-seconds", _rate, 300.0, "limit for each start of our processes")


def _add_kernels_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: cuda)")
    text = "whose sizes (default: llama-3.1-8b)"
    parser.add_argument("--shape", choices=MODEL_SHAPES, default="llama-3.1-8b", help=text)
    dtypes = ("bfloat16", "float16", "float32")
    parser.add_argument("--dtype", choices=dtypes, default="bfloat16", help="(default: bfloat16)")
    _add(parser, "--batches", _counts, (1, 8, 32), "sequences of a step")
    _add(parser, "--contexts", _counts, (1024, 4096, 8192), "tokens that each of them has")
    _add(parser, "--rank", _count, 16, "of the adapters")
    _add(parser, "--repetitions", _count, 50, "timed calls of each op")


BENCHMARKS = {
    "engine": Benchmark(
        "measure prefill, decode and the paired step of an engine in this process",
        _add_engine_flags,
        sections.BENCH_ENGINE,
    ),
    "agents": Benchmark(
        "let specialists share one KV cache, then give each its own, under the same load",
        _add_agents_flags,
        sections.BENCH_AGENTS,
    ),
    "transfer": Benchmark("read another process's blocks by NIXL", _add_transfer_flags, {}),
    "peer": Benchmark("run vLLM and Icarus in turn under the same load", _add_peer_flags, sections.BENCH_PEER),
    "kernels": Benchmark("compare each op's bandwidth with a copy's, on a GPU", _add_kernels_flags, {}),
}


def _add_random_weights(parser: argparse.ArgumentParser) -> None:
    text = "random weights of this shape, in place of the model in the settings"
    parser.add_argument("--random-weights", choices=MODEL_SHAPES, default="", help=text)


def _add(parser: argparse.ArgumentParser, flag: str, kind: Callable[[str], object], default: object, text: str) -> None:
    metavar = {_count: "N", int: "N", _rate: "X", _counts: "N,N,...", _rates: "X,X,..."}.get(kind, "TEXT")
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    suffix = "" if default is None else f" (default: {shown})"
    parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=text + suffix)


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _counts(text: str) -> tuple[int, ...]:
    return tuple(map(_count, text.split(",")))


def _rates(text: str) -> tuple[float, ...]:
    return tuple(map(_rate, text.split(",")))
