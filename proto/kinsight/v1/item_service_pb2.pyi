from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.longrunning import operations_pb2 as _operations_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.rpc import status_pb2 as _status_pb2
from kinsight.v1 import search_service_pb2 as _search_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Item(_message.Message):
    __slots__ = ("item", "payload", "sequence", "sha256", "searchable")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SEARCHABLE_FIELD_NUMBER: _ClassVar[int]
    item: str
    payload: _struct_pb2.Struct
    sequence: int
    sha256: str
    searchable: bool
    def __init__(self, item: _Optional[str] = ..., payload: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., sequence: _Optional[int] = ..., sha256: _Optional[str] = ..., searchable: _Optional[bool] = ...) -> None: ...

class ItemUpsert(_message.Message):
    __slots__ = ("item", "image", "embedding", "payload")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    item: str
    image: bytes
    embedding: _search_service_pb2.Embedding
    payload: _struct_pb2.Struct
    def __init__(self, item: _Optional[str] = ..., image: _Optional[bytes] = ..., embedding: _Optional[_Union[_search_service_pb2.Embedding, _Mapping]] = ..., payload: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class BatchUpsertItemsRequest(_message.Message):
    __slots__ = ("index", "request_id", "items", "wait_for")
    class WaitFor(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        WAIT_FOR_UNSPECIFIED: _ClassVar[BatchUpsertItemsRequest.WaitFor]
        WAIT_FOR_ACKNOWLEDGED: _ClassVar[BatchUpsertItemsRequest.WaitFor]
        WAIT_FOR_SEARCHABLE: _ClassVar[BatchUpsertItemsRequest.WaitFor]
    WAIT_FOR_UNSPECIFIED: BatchUpsertItemsRequest.WaitFor
    WAIT_FOR_ACKNOWLEDGED: BatchUpsertItemsRequest.WaitFor
    WAIT_FOR_SEARCHABLE: BatchUpsertItemsRequest.WaitFor
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    WAIT_FOR_FIELD_NUMBER: _ClassVar[int]
    index: str
    request_id: str
    items: _containers.RepeatedCompositeFieldContainer[ItemUpsert]
    wait_for: BatchUpsertItemsRequest.WaitFor
    def __init__(self, index: _Optional[str] = ..., request_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[ItemUpsert, _Mapping]]] = ..., wait_for: _Optional[_Union[BatchUpsertItemsRequest.WaitFor, str]] = ...) -> None: ...

class ItemResult(_message.Message):
    __slots__ = ("item", "status", "sequence")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    item: str
    status: _status_pb2.Status
    sequence: int
    def __init__(self, item: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., sequence: _Optional[int] = ...) -> None: ...

class BatchUpsertItemsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ItemResult]
    def __init__(self, results: _Optional[_Iterable[_Union[ItemResult, _Mapping]]] = ...) -> None: ...

class BatchDeleteItemsRequest(_message.Message):
    __slots__ = ("index", "request_id", "items")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    index: str
    request_id: str
    items: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, index: _Optional[str] = ..., request_id: _Optional[str] = ..., items: _Optional[_Iterable[str]] = ...) -> None: ...

class BatchDeleteItemsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ItemResult]
    def __init__(self, results: _Optional[_Iterable[_Union[ItemResult, _Mapping]]] = ...) -> None: ...

class GetItemRequest(_message.Message):
    __slots__ = ("index", "item")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    index: str
    item: str
    def __init__(self, index: _Optional[str] = ..., item: _Optional[str] = ...) -> None: ...

class ListItemsRequest(_message.Message):
    __slots__ = ("index", "page_size", "page_token", "filter")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    index: str
    page_size: int
    page_token: str
    filter: str
    def __init__(self, index: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[str] = ...) -> None: ...

class ListItemsResponse(_message.Message):
    __slots__ = ("items", "next_page_token")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    next_page_token: str
    def __init__(self, items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ImportItemsRequest(_message.Message):
    __slots__ = ("index", "request_id", "path", "failures_path")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FAILURES_PATH_FIELD_NUMBER: _ClassVar[int]
    index: str
    request_id: str
    path: str
    failures_path: str
    def __init__(self, index: _Optional[str] = ..., request_id: _Optional[str] = ..., path: _Optional[str] = ..., failures_path: _Optional[str] = ...) -> None: ...

class ItemFailure(_message.Message):
    __slots__ = ("item", "reason")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    item: str
    reason: str
    def __init__(self, item: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ImportItemsResponse(_message.Message):
    __slots__ = ("imported", "unchanged", "failed", "failures", "warnings")
    IMPORTED_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    imported: int
    unchanged: int
    failed: int
    failures: _containers.RepeatedCompositeFieldContainer[ItemFailure]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, imported: _Optional[int] = ..., unchanged: _Optional[int] = ..., failed: _Optional[int] = ..., failures: _Optional[_Iterable[_Union[ItemFailure, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class ExportItemsRequest(_message.Message):
    __slots__ = ("index", "request_id", "path")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    index: str
    request_id: str
    path: str
    def __init__(self, index: _Optional[str] = ..., request_id: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class ExportItemsResponse(_message.Message):
    __slots__ = ("path", "items", "bytes", "model", "sequence")
    PATH_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    path: str
    items: int
    bytes: int
    model: str
    sequence: int
    def __init__(self, path: _Optional[str] = ..., items: _Optional[int] = ..., bytes: _Optional[int] = ..., model: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...
