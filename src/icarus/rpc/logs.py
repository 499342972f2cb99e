"""One line a record, as key=value; `extra={...}` fields come last, and the task's own after them."""

import json
import logging
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_MAX_VALUE = 1024
_MAX_TRACEBACK = 16_384
"""In characters. Values may be a caller's."""
_task_fields: ContextVar[Mapping[str, str]] = ContextVar("log_fields", default=MappingProxyType({}))


def bind_log_fields(**fields: str) -> None:
    """Adds fields that are not empty to each line that this task and those it starts log from now on."""
    _task_fields.set({**_task_fields.get(), **{name: value for name, value in fields.items() if value}})


class KeyValueFormatter(logging.Formatter):
    """`time=... level=info logger=icarus.rpc.server msg=serving address=127.0.0.1:7080`"""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        fields |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        fields |= _task_fields.get()
        values = {key: _cut(str(value), _MAX_VALUE) for key, value in fields.items()}
        if record.exc_info:
            values["traceback"] = _cut(self.formatException(record.exc_info), _MAX_TRACEBACK)
        return " ".join(f"{key}={_quote(value)}" for key, value in values.items())


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def _quote(text: str) -> str:
    plain = text and text.isprintable() and not any(c in text for c in ' "=\\')
    return text if plain else json.dumps(text, ensure_ascii=False)


def configure_logging(level: str = "INFO") -> None:
    """Sends every record of the process to stderr in this form. Called once, by a service's entry point."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
