from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Labels(_message.Message):
    __slots__ = ("path", "images", "pairs")
    PATH_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    path: str
    images: _containers.RepeatedCompositeFieldContainer[LabelledImage]
    pairs: _containers.RepeatedCompositeFieldContainer[LabelledPair]
    def __init__(self, path: _Optional[str] = ..., images: _Optional[_Iterable[_Union[LabelledImage, _Mapping]]] = ..., pairs: _Optional[_Iterable[_Union[LabelledPair, _Mapping]]] = ...) -> None: ...

class LabelledImage(_message.Message):
    __slots__ = ("path", "class_id", "held_out")
    PATH_FIELD_NUMBER: _ClassVar[int]
    CLASS_ID_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    path: str
    class_id: str
    held_out: bool
    def __init__(self, path: _Optional[str] = ..., class_id: _Optional[str] = ..., held_out: _Optional[bool] = ...) -> None: ...

class LabelledPair(_message.Message):
    __slots__ = ("path_a", "path_b", "relation")
    class Relation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        RELATION_UNSPECIFIED: _ClassVar[LabelledPair.Relation]
        RELATION_SAME: _ClassVar[LabelledPair.Relation]
        RELATION_DIFFERENT: _ClassVar[LabelledPair.Relation]
    RELATION_UNSPECIFIED: LabelledPair.Relation
    RELATION_SAME: LabelledPair.Relation
    RELATION_DIFFERENT: LabelledPair.Relation
    PATH_A_FIELD_NUMBER: _ClassVar[int]
    PATH_B_FIELD_NUMBER: _ClassVar[int]
    RELATION_FIELD_NUMBER: _ClassVar[int]
    path_a: str
    path_b: str
    relation: LabelledPair.Relation
    def __init__(self, path_a: _Optional[str] = ..., path_b: _Optional[str] = ..., relation: _Optional[_Union[LabelledPair.Relation, str]] = ...) -> None: ...
