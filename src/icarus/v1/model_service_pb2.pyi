from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdapterMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_MODE_UNSPECIFIED: _ClassVar[AdapterMode]
    ADAPTER_MODE_SHARED: _ClassVar[AdapterMode]
    ADAPTER_MODE_PRIVATE: _ClassVar[AdapterMode]
ADAPTER_MODE_UNSPECIFIED: AdapterMode
ADAPTER_MODE_SHARED: AdapterMode
ADAPTER_MODE_PRIVATE: AdapterMode

class Model(_message.Message):
    __slots__ = ("name", "is_base", "mode", "digest", "worker_ids", "pinned", "resident_worker_ids")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IS_BASE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    is_base: bool
    mode: AdapterMode
    digest: str
    worker_ids: _containers.RepeatedScalarFieldContainer[str]
    pinned: bool
    resident_worker_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., is_base: _Optional[bool] = ..., mode: _Optional[_Union[AdapterMode, str]] = ..., digest: _Optional[str] = ..., worker_ids: _Optional[_Iterable[str]] = ..., pinned: _Optional[bool] = ..., resident_worker_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "context_length")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    context_length: int
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., context_length: _Optional[int] = ...) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("name", "path", "mode", "worker_ids", "replace", "pin")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    mode: AdapterMode
    worker_ids: _containers.RepeatedScalarFieldContainer[str]
    replace: bool
    pin: bool
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., mode: _Optional[_Union[AdapterMode, str]] = ..., worker_ids: _Optional[_Iterable[str]] = ..., replace: _Optional[bool] = ..., pin: _Optional[bool] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class PinAdapterRequest(_message.Message):
    __slots__ = ("name", "pinned")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    name: str
    pinned: bool
    def __init__(self, name: _Optional[str] = ..., pinned: _Optional[bool] = ...) -> None: ...

class PinAdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
