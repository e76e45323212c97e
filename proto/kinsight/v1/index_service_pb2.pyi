import datetime

from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.longrunning import operations_pb2 as _operations_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from kinsight.v1 import labels_pb2 as _labels_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Index(_message.Message):
    __slots__ = ("index", "active_version", "previous_version", "model", "items", "etag", "problem")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    index: str
    active_version: int
    previous_version: int
    model: str
    items: int
    etag: str
    problem: str
    def __init__(self, index: _Optional[str] = ..., active_version: _Optional[int] = ..., previous_version: _Optional[int] = ..., model: _Optional[str] = ..., items: _Optional[int] = ..., etag: _Optional[str] = ..., problem: _Optional[str] = ...) -> None: ...

class Version(_message.Message):
    __slots__ = ("index", "version", "state", "model", "dimension", "items", "sequence", "factory", "bytes", "recall_at_10", "create_time", "refusal")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Version.State]
        STATE_READY: _ClassVar[Version.State]
        STATE_ACTIVE: _ClassVar[Version.State]
        STATE_REFUSED: _ClassVar[Version.State]
    STATE_UNSPECIFIED: Version.State
    STATE_READY: Version.State
    STATE_ACTIVE: Version.State
    STATE_REFUSED: Version.State
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FACTORY_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    RECALL_AT_10_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    index: str
    version: int
    state: Version.State
    model: str
    dimension: int
    items: int
    sequence: int
    factory: str
    bytes: int
    recall_at_10: float
    create_time: _timestamp_pb2.Timestamp
    refusal: str
    def __init__(self, index: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[_Union[Version.State, str]] = ..., model: _Optional[str] = ..., dimension: _Optional[int] = ..., items: _Optional[int] = ..., sequence: _Optional[int] = ..., factory: _Optional[str] = ..., bytes: _Optional[int] = ..., recall_at_10: _Optional[float] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., refusal: _Optional[str] = ...) -> None: ...

class PairedMeasure(_message.Message):
    __slots__ = ("active", "candidate", "low", "high")
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    active: float
    candidate: float
    low: float
    high: float
    def __init__(self, active: _Optional[float] = ..., candidate: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class Comparison(_message.Message):
    __slots__ = ("active_version", "active_model", "items", "overlap_at_10", "rank_correlation", "contrast", "label_recall_at_1", "labelled_items")
    ACTIVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_MODEL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_AT_10_FIELD_NUMBER: _ClassVar[int]
    RANK_CORRELATION_FIELD_NUMBER: _ClassVar[int]
    CONTRAST_FIELD_NUMBER: _ClassVar[int]
    LABEL_RECALL_AT_1_FIELD_NUMBER: _ClassVar[int]
    LABELLED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    active_version: int
    active_model: str
    items: int
    overlap_at_10: float
    rank_correlation: float
    contrast: PairedMeasure
    label_recall_at_1: PairedMeasure
    labelled_items: int
    def __init__(self, active_version: _Optional[int] = ..., active_model: _Optional[str] = ..., items: _Optional[int] = ..., overlap_at_10: _Optional[float] = ..., rank_correlation: _Optional[float] = ..., contrast: _Optional[_Union[PairedMeasure, _Mapping]] = ..., label_recall_at_1: _Optional[_Union[PairedMeasure, _Mapping]] = ..., labelled_items: _Optional[int] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("version", "recall_at_10", "recall_low", "recall_high", "recall_queries", "comparison")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RECALL_AT_10_FIELD_NUMBER: _ClassVar[int]
    RECALL_LOW_FIELD_NUMBER: _ClassVar[int]
    RECALL_HIGH_FIELD_NUMBER: _ClassVar[int]
    RECALL_QUERIES_FIELD_NUMBER: _ClassVar[int]
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    version: int
    recall_at_10: float
    recall_low: float
    recall_high: float
    recall_queries: int
    comparison: Comparison
    def __init__(self, version: _Optional[int] = ..., recall_at_10: _Optional[float] = ..., recall_low: _Optional[float] = ..., recall_high: _Optional[float] = ..., recall_queries: _Optional[int] = ..., comparison: _Optional[_Union[Comparison, _Mapping]] = ...) -> None: ...

class ListIndexesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListIndexesResponse(_message.Message):
    __slots__ = ("indexes", "next_page_token")
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    indexes: _containers.RepeatedCompositeFieldContainer[Index]
    next_page_token: str
    def __init__(self, indexes: _Optional[_Iterable[_Union[Index, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetIndexRequest(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: str
    def __init__(self, index: _Optional[str] = ...) -> None: ...

class GetIndexStatsRequest(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: str
    def __init__(self, index: _Optional[str] = ...) -> None: ...

class IndexStats(_message.Message):
    __slots__ = ("index", "version", "model", "items", "delta_items", "hidden_items", "pending_items", "sequence", "recall_at_10", "list_imbalance", "memory_bytes", "disk_bytes")
    class MemoryBytesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class DiskBytesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    DELTA_ITEMS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_ITEMS_FIELD_NUMBER: _ClassVar[int]
    PENDING_ITEMS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RECALL_AT_10_FIELD_NUMBER: _ClassVar[int]
    LIST_IMBALANCE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    index: str
    version: int
    model: str
    items: int
    delta_items: int
    hidden_items: int
    pending_items: int
    sequence: int
    recall_at_10: float
    list_imbalance: float
    memory_bytes: _containers.ScalarMap[str, int]
    disk_bytes: _containers.ScalarMap[str, int]
    def __init__(self, index: _Optional[str] = ..., version: _Optional[int] = ..., model: _Optional[str] = ..., items: _Optional[int] = ..., delta_items: _Optional[int] = ..., hidden_items: _Optional[int] = ..., pending_items: _Optional[int] = ..., sequence: _Optional[int] = ..., recall_at_10: _Optional[float] = ..., list_imbalance: _Optional[float] = ..., memory_bytes: _Optional[_Mapping[str, int]] = ..., disk_bytes: _Optional[_Mapping[str, int]] = ...) -> None: ...

class BuildVersionRequest(_message.Message):
    __slots__ = ("index", "request_id", "images", "model", "learn", "fine_tune", "min_recall", "activate", "labels", "target_recall", "epochs", "learn_memory_bytes")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LEARN_FIELD_NUMBER: _ClassVar[int]
    FINE_TUNE_FIELD_NUMBER: _ClassVar[int]
    MIN_RECALL_FIELD_NUMBER: _ClassVar[int]
    ACTIVATE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TARGET_RECALL_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    LEARN_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    index: str
    request_id: str
    images: str
    model: str
    learn: bool
    fine_tune: FineTune
    min_recall: float
    activate: bool
    labels: str
    target_recall: float
    epochs: int
    learn_memory_bytes: int
    def __init__(self, index: _Optional[str] = ..., request_id: _Optional[str] = ..., images: _Optional[str] = ..., model: _Optional[str] = ..., learn: _Optional[bool] = ..., fine_tune: _Optional[_Union[FineTune, _Mapping]] = ..., min_recall: _Optional[float] = ..., activate: _Optional[bool] = ..., labels: _Optional[str] = ..., target_recall: _Optional[float] = ..., epochs: _Optional[int] = ..., learn_memory_bytes: _Optional[int] = ...) -> None: ...

class FineTune(_message.Message):
    __slots__ = ("labels", "method", "keep_doubted")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    KEEP_DOUBTED_FIELD_NUMBER: _ClassVar[int]
    labels: _labels_pb2.Labels
    method: str
    keep_doubted: bool
    def __init__(self, labels: _Optional[_Union[_labels_pb2.Labels, _Mapping]] = ..., method: _Optional[str] = ..., keep_doubted: _Optional[bool] = ...) -> None: ...

class BuildVersionResponse(_message.Message):
    __slots__ = ("version", "evaluation", "reused", "embedded", "failed", "warnings")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    EMBEDDED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    version: Version
    evaluation: Evaluation
    reused: int
    embedded: int
    failed: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., reused: _Optional[int] = ..., embedded: _Optional[int] = ..., failed: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class ActivateVersionRequest(_message.Message):
    __slots__ = ("index", "version", "etag")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    index: str
    version: int
    etag: str
    def __init__(self, index: _Optional[str] = ..., version: _Optional[int] = ..., etag: _Optional[str] = ...) -> None: ...

class RollbackIndexRequest(_message.Message):
    __slots__ = ("index", "etag")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    index: str
    etag: str
    def __init__(self, index: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...

class ListVersionsRequest(_message.Message):
    __slots__ = ("index", "page_size", "page_token")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    index: str
    page_size: int
    page_token: str
    def __init__(self, index: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListVersionsResponse(_message.Message):
    __slots__ = ("versions", "next_page_token")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[Version]
    next_page_token: str
    def __init__(self, versions: _Optional[_Iterable[_Union[Version, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteVersionRequest(_message.Message):
    __slots__ = ("index", "version")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    index: str
    version: int
    def __init__(self, index: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class EvaluateVersionRequest(_message.Message):
    __slots__ = ("index", "version", "labels")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    index: str
    version: int
    labels: str
    def __init__(self, index: _Optional[str] = ..., version: _Optional[int] = ..., labels: _Optional[str] = ...) -> None: ...

class SnapshotIndexRequest(_message.Message):
    __slots__ = ("index", "request_id", "directory")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    index: str
    request_id: str
    directory: str
    def __init__(self, index: _Optional[str] = ..., request_id: _Optional[str] = ..., directory: _Optional[str] = ...) -> None: ...

class SnapshotIndexResponse(_message.Message):
    __slots__ = ("directory", "version", "sequence", "bytes")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    directory: str
    version: int
    sequence: int
    bytes: int
    def __init__(self, directory: _Optional[str] = ..., version: _Optional[int] = ..., sequence: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class RestoreIndexRequest(_message.Message):
    __slots__ = ("index", "request_id", "directory")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    index: str
    request_id: str
    directory: str
    def __init__(self, index: _Optional[str] = ..., request_id: _Optional[str] = ..., directory: _Optional[str] = ...) -> None: ...
