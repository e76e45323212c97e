import datetime

from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.longrunning import operations_pb2 as _operations_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from kinsight.v1 import labels_pb2 as _labels_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Model(_message.Message):
    __slots__ = ("model", "backbone", "objective", "dimension", "images", "labelled", "metrics", "create_time", "licence", "calibration")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BACKBONE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LABELLED_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    model: str
    backbone: str
    objective: str
    dimension: int
    images: int
    labelled: int
    metrics: _containers.ScalarMap[str, float]
    create_time: _timestamp_pb2.Timestamp
    licence: str
    calibration: Calibration
    def __init__(self, model: _Optional[str] = ..., backbone: _Optional[str] = ..., objective: _Optional[str] = ..., dimension: _Optional[int] = ..., images: _Optional[int] = ..., labelled: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., licence: _Optional[str] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("method", "ece_pairs", "ece_hits", "images", "classes", "same", "different", "things")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ECE_PAIRS_FIELD_NUMBER: _ClassVar[int]
    ECE_HITS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    SAME_FIELD_NUMBER: _ClassVar[int]
    DIFFERENT_FIELD_NUMBER: _ClassVar[int]
    THINGS_FIELD_NUMBER: _ClassVar[int]
    method: str
    ece_pairs: float
    ece_hits: float
    images: int
    classes: int
    same: int
    different: int
    things: int
    def __init__(self, method: _Optional[str] = ..., ece_pairs: _Optional[float] = ..., ece_hits: _Optional[float] = ..., images: _Optional[int] = ..., classes: _Optional[int] = ..., same: _Optional[int] = ..., different: _Optional[int] = ..., things: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class TrainRequest(_message.Message):
    __slots__ = ("request_id", "images", "model", "recipe", "labels", "epochs", "seed")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    images: _containers.RepeatedScalarFieldContainer[str]
    model: str
    recipe: str
    labels: str
    epochs: int
    seed: int
    def __init__(self, request_id: _Optional[str] = ..., images: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ..., recipe: _Optional[str] = ..., labels: _Optional[str] = ..., epochs: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class TrainResponse(_message.Message):
    __slots__ = ("model", "failed", "warnings", "beats_start")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    BEATS_START_FIELD_NUMBER: _ClassVar[int]
    model: Model
    failed: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    beats_start: bool
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., failed: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ..., beats_start: _Optional[bool] = ...) -> None: ...

class FineTuneRequest(_message.Message):
    __slots__ = ("request_id", "model", "images", "labels", "method", "epochs", "seed", "keep_doubted")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    KEEP_DOUBTED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    images: str
    labels: _labels_pb2.Labels
    method: str
    epochs: int
    seed: int
    keep_doubted: bool
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., images: _Optional[str] = ..., labels: _Optional[_Union[_labels_pb2.Labels, _Mapping]] = ..., method: _Optional[str] = ..., epochs: _Optional[int] = ..., seed: _Optional[int] = ..., keep_doubted: _Optional[bool] = ...) -> None: ...

class FineTuneResponse(_message.Message):
    __slots__ = ("model", "suspects", "compared", "unknown_labels", "failed", "warnings", "beats_start", "beats_supervised", "supervised")
    class SupervisedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SUSPECTS_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_LABELS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    BEATS_START_FIELD_NUMBER: _ClassVar[int]
    BEATS_SUPERVISED_FIELD_NUMBER: _ClassVar[int]
    SUPERVISED_FIELD_NUMBER: _ClassVar[int]
    model: Model
    suspects: _containers.RepeatedCompositeFieldContainer[Suspect]
    compared: int
    unknown_labels: _containers.RepeatedScalarFieldContainer[str]
    failed: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    beats_start: bool
    beats_supervised: bool
    supervised: _containers.ScalarMap[str, float]
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., suspects: _Optional[_Iterable[_Union[Suspect, _Mapping]]] = ..., compared: _Optional[int] = ..., unknown_labels: _Optional[_Iterable[str]] = ..., failed: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ..., beats_start: _Optional[bool] = ..., beats_supervised: _Optional[bool] = ..., supervised: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Suspect(_message.Message):
    __slots__ = ("item", "like", "similarity", "own_similarity")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    LIKE_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    OWN_SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    item: str
    like: str
    similarity: float
    own_similarity: float
    def __init__(self, item: _Optional[str] = ..., like: _Optional[str] = ..., similarity: _Optional[float] = ..., own_similarity: _Optional[float] = ...) -> None: ...

class SuggestLabelsRequest(_message.Message):
    __slots__ = ("request_id", "model", "images", "budget", "seed", "labels", "method")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    images: str
    budget: int
    seed: int
    labels: _labels_pb2.Labels
    method: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., images: _Optional[str] = ..., budget: _Optional[int] = ..., seed: _Optional[int] = ..., labels: _Optional[_Union[_labels_pb2.Labels, _Mapping]] = ..., method: _Optional[str] = ...) -> None: ...

class SuggestedImage(_message.Message):
    __slots__ = ("path", "stands_for", "density_rank", "nearest", "similarity")
    PATH_FIELD_NUMBER: _ClassVar[int]
    STANDS_FOR_FIELD_NUMBER: _ClassVar[int]
    DENSITY_RANK_FIELD_NUMBER: _ClassVar[int]
    NEAREST_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    path: str
    stands_for: int
    density_rank: int
    nearest: str
    similarity: float
    def __init__(self, path: _Optional[str] = ..., stands_for: _Optional[int] = ..., density_rank: _Optional[int] = ..., nearest: _Optional[str] = ..., similarity: _Optional[float] = ...) -> None: ...

class SuggestLabelsResponse(_message.Message):
    __slots__ = ("model", "images", "suggested", "failed", "warnings", "labelled")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    SUGGESTED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    LABELLED_FIELD_NUMBER: _ClassVar[int]
    model: str
    images: int
    suggested: _containers.RepeatedCompositeFieldContainer[SuggestedImage]
    failed: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    labelled: int
    def __init__(self, model: _Optional[str] = ..., images: _Optional[int] = ..., suggested: _Optional[_Iterable[_Union[SuggestedImage, _Mapping]]] = ..., failed: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ..., labelled: _Optional[int] = ...) -> None: ...

class CalibrateRequest(_message.Message):
    __slots__ = ("request_id", "model", "images", "labels", "things")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    THINGS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    images: str
    labels: _labels_pb2.Labels
    things: int
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., images: _Optional[str] = ..., labels: _Optional[_Union[_labels_pb2.Labels, _Mapping]] = ..., things: _Optional[int] = ...) -> None: ...

class CalibrateResponse(_message.Message):
    __slots__ = ("model", "calibration", "unknown_labels", "failed", "warnings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_LABELS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    model: str
    calibration: Calibration
    unknown_labels: _containers.RepeatedScalarFieldContainer[str]
    failed: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ..., unknown_labels: _Optional[_Iterable[str]] = ..., failed: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...
