from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class LoadAdapterRequest(_message.Message):
    __slots__ = ("name", "path", "mode", "replace", "pin")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    mode: str
    replace: bool
    pin: bool
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., mode: _Optional[str] = ..., replace: _Optional[bool] = ..., pin: _Optional[bool] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ("digest", "mode", "rank", "adapters_revision")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_REVISION_FIELD_NUMBER: _ClassVar[int]
    digest: str
    mode: str
    rank: int
    adapters_revision: int
    def __init__(self, digest: _Optional[str] = ..., mode: _Optional[str] = ..., rank: _Optional[int] = ..., adapters_revision: _Optional[int] = ...) -> None: ...

class PinAdapterRequest(_message.Message):
    __slots__ = ("name", "pinned")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    name: str
    pinned: bool
    def __init__(self, name: _Optional[str] = ..., pinned: _Optional[bool] = ...) -> None: ...

class PinAdapterResponse(_message.Message):
    __slots__ = ("adapters_revision",)
    ADAPTERS_REVISION_FIELD_NUMBER: _ClassVar[int]
    adapters_revision: int
    def __init__(self, adapters_revision: _Optional[int] = ...) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ("adapters_revision",)
    ADAPTERS_REVISION_FIELD_NUMBER: _ClassVar[int]
    adapters_revision: int
    def __init__(self, adapters_revision: _Optional[int] = ...) -> None: ...
