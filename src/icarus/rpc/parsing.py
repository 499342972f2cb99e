"""Requests from bytes, inside the handler: where gRPC parses them itself, bytes that do not parse are INTERNAL."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from icarus.errors import InvalidInputError

_LENGTH_DELIMITED = 2


class RequestParser:
    """Parses the requests of one method. `from_string` is a message class's `FromString`."""

    def __init__(self, from_string: Callable[[bytes], Any]):
        self._from_string = from_string

    def parse(self, data: bytes) -> Any:
        """Raises InvalidInputError naming the message and, where text is not UTF-8, the field."""
        try:
            return self._from_string(data)
        except DecodeError as error:
            descriptor: Descriptor = self._from_string.__self__.DESCRIPTOR  # type: ignore[attr-defined]
            raise InvalidInputError(_describe(descriptor, data, error)) from None

    async def parse_each(self, stream: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """Raises InvalidInputError as `parse` does."""
        async for data in stream:
            yield self.parse(data)


def _describe(descriptor: Descriptor, data: bytes, error: DecodeError) -> str:
    found = _find_bad_text(descriptor, data)
    if found is None:
        return f"the request is not a readable {descriptor.full_name} ({error}); send what its .proto file says"
    path, value = found
    return f"{descriptor.full_name}: {path} is not valid UTF-8 ({value[:20]!r}); send text as UTF-8"


def _find_bad_text(descriptor: Descriptor, data: bytes) -> tuple[str, bytes] | None:
    """The path and the bytes of the first string field that is not UTF-8; None where there is none."""
    try:
        fields = UnknownFieldSet(Empty.FromString(data))
    except DecodeError:
        return None
    for field in fields:
        known = descriptor.fields_by_number.get(field.field_number)
        if known is None or field.wire_type != _LENGTH_DELIMITED:
            continue
        if known.type == FieldDescriptor.TYPE_STRING and not _is_text(field.data):
            return known.name, field.data
        if known.message_type is not None and (inner := _find_bad_text(known.message_type, field.data)):
            return f"{known.name}.{inner[0]}", inner[1]
    return None


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
