"""How a channel to a server behaves: what is retried, how soon it reconnects, and how its health is asked for."""

import json
import re
from typing import Any

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
# The two messages of a health check that matter, as bytes: an empty HealthCheckRequest asks for the whole server,
# and a HealthCheckResponse is one enum. It spares every user of the client one more package.
HEALTH_REQUEST = b""
HEALTH_SERVING = b"\x08\x01"

# gRPC's own retries: UNAVAILABLE only, which says that the server is not there, and not that the request is wrong.
# Five attempts wait 3 s together, enough for a server that restarts.
_RETRY = {
    "maxAttempts": 5,
    "initialBackoff": "0.2s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_INDEX_SERVICE = "kinsight.v1.IndexService"
_SEARCH_SERVICE = "kinsight.v1.SearchService"
_OPERATIONS = "google.longrunning.Operations"
# Most requests read, or carry a request id by which the server knows them again. These do not, and the connection may
# have been lost after the server did what they ask for: doing it again would undo it, fail, or do it twice.
_NOT_RETRIED = (
    *(
        (_INDEX_SERVICE, method)
        for method in ("RollbackIndex", "ActivateVersion", "DeleteVersion", "EvaluateVersion")
    ),
    (_OPERATIONS, "DeleteOperation"),
)
_RETRIED = (
    _SEARCH_SERVICE,
    "kinsight.v1.ItemService",
    _INDEX_SERVICE,
    "kinsight.v1.ModelService",
    _OPERATIONS,
)
_SERVICE_CONFIG = {
    "methodConfig": [
        {"name": [{"service": service} for service in _RETRIED], "retryPolicy": _RETRY},
        {"name": [{"service": service, "method": method} for service, method in _NOT_RETRIED]},
        # What a stream did not answer is asked for by a call, and that is retried.
        {"name": [{"service": _SEARCH_SERVICE, "method": "StreamSearch"}]},
    ]
}
OPTIONS = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # A request is only retried while a copy is kept; gRPC's 256 KiB would leave out most photographs.
    ("grpc.per_rpc_retry_buffer_size", 64 * 2**20),
    # Reconnect as quickly as the retries come; gRPC's 1 s to 120 s would fail them all on one refused connection.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # 1,000 items with payloads of 64 KiB each pass any small bound, and answers are only as long as was asked for.
    ("grpc.max_receive_message_length", -1),
)

MAX_PORT = 65_535
_NUMBER = re.compile(r"\s*[+-]?[0-9]+")  # what gRPC takes for a port's
_BARE_IPV6 = re.compile(r"[0-9a-f]*(:[0-9a-f]*){2,}", re.IGNORECASE)  # whose end may be a port, or not
_LOOPBACK = re.compile(r"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?", re.IGNORECASE)


def check_target(target: str) -> None:
    """Raise ValueError where gRPC would take another port: the remainder by 65,536, or its default."""
    if _BARE_IPV6.fullmatch(target):
        raise ValueError(f"the target is {target!r}; write an IPv6 address in brackets, as in [::1]:50051")
    port = target.rpartition(":")[2]
    if _NUMBER.fullmatch(port) and not 0 <= int(port) <= MAX_PORT:
        raise ValueError(
            f"the target is {target!r}; its port must be 1 to {MAX_PORT}, the one that a server listens on"
        )


def options_for(target: str) -> tuple[tuple[str, Any], ...]:
    """The options of a channel to a target: on this machine past the proxies that `http_proxy` names for others."""
    past_proxies = (("grpc.enable_http_proxy", 0),) if _LOOPBACK.fullmatch(target) else ()
    return (*OPTIONS, *past_proxies)
