import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OperationMetadata(_message.Message):
    __slots__ = ("kind", "index", "state", "stage", "done", "total", "rate", "eta", "start_time", "update_time", "end_time", "warnings")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[OperationMetadata.Kind]
        KIND_IMPORT: _ClassVar[OperationMetadata.Kind]
        KIND_EXPORT: _ClassVar[OperationMetadata.Kind]
        KIND_BUILD: _ClassVar[OperationMetadata.Kind]
        KIND_EVALUATE: _ClassVar[OperationMetadata.Kind]
        KIND_SNAPSHOT: _ClassVar[OperationMetadata.Kind]
        KIND_RESTORE: _ClassVar[OperationMetadata.Kind]
        KIND_TRAIN: _ClassVar[OperationMetadata.Kind]
        KIND_FINE_TUNE: _ClassVar[OperationMetadata.Kind]
        KIND_SUGGEST_LABELS: _ClassVar[OperationMetadata.Kind]
        KIND_CALIBRATE: _ClassVar[OperationMetadata.Kind]
    KIND_UNSPECIFIED: OperationMetadata.Kind
    KIND_IMPORT: OperationMetadata.Kind
    KIND_EXPORT: OperationMetadata.Kind
    KIND_BUILD: OperationMetadata.Kind
    KIND_EVALUATE: OperationMetadata.Kind
    KIND_SNAPSHOT: OperationMetadata.Kind
    KIND_RESTORE: OperationMetadata.Kind
    KIND_TRAIN: OperationMetadata.Kind
    KIND_FINE_TUNE: OperationMetadata.Kind
    KIND_SUGGEST_LABELS: OperationMetadata.Kind
    KIND_CALIBRATE: OperationMetadata.Kind
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[OperationMetadata.State]
        STATE_QUEUED: _ClassVar[OperationMetadata.State]
        STATE_RUNNING: _ClassVar[OperationMetadata.State]
        STATE_INTERRUPTED: _ClassVar[OperationMetadata.State]
        STATE_SUCCEEDED: _ClassVar[OperationMetadata.State]
        STATE_FAILED: _ClassVar[OperationMetadata.State]
        STATE_CANCELLED: _ClassVar[OperationMetadata.State]
    STATE_UNSPECIFIED: OperationMetadata.State
    STATE_QUEUED: OperationMetadata.State
    STATE_RUNNING: OperationMetadata.State
    STATE_INTERRUPTED: OperationMetadata.State
    STATE_SUCCEEDED: OperationMetadata.State
    STATE_FAILED: OperationMetadata.State
    STATE_CANCELLED: OperationMetadata.State
    KIND_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    kind: OperationMetadata.Kind
    index: str
    state: OperationMetadata.State
    stage: str
    done: int
    total: int
    rate: float
    eta: _duration_pb2.Duration
    start_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kind: _Optional[_Union[OperationMetadata.Kind, str]] = ..., index: _Optional[str] = ..., state: _Optional[_Union[OperationMetadata.State, str]] = ..., stage: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., rate: _Optional[float] = ..., eta: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...
