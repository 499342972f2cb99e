"""Checks of what callers pass: each raises InvalidInputError that names the argument and its value."""

import math
import os
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor

from icarus.errors import InvalidInputError

Message = TypeVar("Message")

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: "integers must be in [-2^31, 2^31) here",
    FieldDescriptor.CPPTYPE_INT64: "integers must be in [-2^63, 2^63) here",
    FieldDescriptor.CPPTYPE_UINT32: "integers must be in [0, 2^32) here",
    FieldDescriptor.CPPTYPE_UINT64: "integers must be in [0, 2^64) here",
}


def check_text(name: str, value: str) -> str:
    """The value: text that UTF-8 can hold, which not all of Python's strings are."""
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} is {value!r}; it is text")
    try:
        str.encode(value)
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{name} has {value[error.start]!r} at character {error.start}: half of a surrogate pair, or a byte that "
            "was not UTF-8; send whole characters"
        ) from None
    return value


def check_path(name: str, value: str | os.PathLike[str]) -> str:
    """The path as text."""
    return check_text(name, os.fspath(value) if isinstance(value, os.PathLike) else value)


def check_finite(name: str, value: float) -> float:
    """The value: a number that is 0 or more, and not infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InvalidInputError(f"{name} is {value!r}; it is a finite number, 0 or more")
    return value


def check_seconds(name: str, value: float | None) -> float | None:
    """The value: 0 or more, infinity and None included."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise InvalidInputError(f"{name} is {value!r}; it is a number of seconds, 0 or more, or None")
    return value


def build(kind: type[Message], **fields: Any) -> Message:
    """The message. None leaves a field out."""
    message: Any = kind()
    for name, value in fields.items():
        try:
            message.MergeFrom(kind(**{name: value}))
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInputError(f"{name} cannot be {value!r}: {_rule(kind, name, error) or error}") from None
    return message


def _rule(kind: Any, name: str, error: Exception) -> str:
    """What an integer that its field cannot hold must be; empty for another error."""
    field = kind.DESCRIPTOR.fields_by_name.get(name)
    if field is None or "out of range" not in str(error):
        return ""
    return _INTEGERS.get(field.cpp_type, "")
