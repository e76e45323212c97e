"""Server reflection, so that tools like buf, grpcurl and Postman can call the services without the .proto files."""

from collections.abc import Sequence

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

V1 = "grpc.reflection.v1.ServerReflection"


def enable(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Describe `services` and reflection itself, to new tools (v1) and old ones (v1alpha).

    grpcio-reflection has only v1alpha. v1 has the same messages under another package name, which the wire does not
    carry, so one servicer answers both.
    """
    descriptor_pool.Default().Add(_file_of_v1())
    servicer = reflection.aio.ReflectionServicer([*services, V1, reflection.SERVICE_NAME])
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(V1, {"ServerReflectionInfo": handler}),))


def _file_of_v1() -> descriptor_pb2.FileDescriptorProto:
    """The description of v1, which tools that show every service ask for too."""
    alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    text = text_format.MessageToString(alpha).replace("v1alpha", "v1")
    return text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
