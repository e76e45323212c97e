"""Both clients, called alike, so that one suite is for both."""

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
from kinsight_client import AsyncClient, Client, channel


class Blocking:
    """The asyncio client or a part of it, on a loop of its own: what is awaited there returns here."""

    def __init__(self, target: str, **options: float) -> None:
        self._loop = asyncio.new_event_loop()
        try:
            self._client = self._loop.run_until_complete(self._make(target, options))
        except BaseException:
            self._loop.close()
            raise

    async def _make(self, target: str, options: dict[str, float]) -> AsyncClient:
        return await AsyncClient(target, **options).__aenter__()

    def __getattr__(self, name: str) -> Any:
        return _Part(getattr(self._client, name), self._loop).itself

    def __enter__(self) -> "Blocking":
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.run_until_complete(self._client.__aexit__(None, None, None))
        self._loop.close()


class _Part:
    def __init__(self, part: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._part = part
        self._loop = loop

    @property
    def itself(self) -> Any:
        return self._blocking if inspect.ismethod(self._part) else self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = _Part(getattr(self._part, name), self._loop).itself
        return found

    def _blocking(self, *args: Any, **kwargs: Any) -> Any:
        async def gathered() -> list[Any]:
            return [one async for one in answer]

        answer = self._part(*args, **kwargs)
        return self._loop.run_until_complete(answer if inspect.isawaitable(answer) else gathered())


BOTH: list[Any] = [Client, Blocking]
KINDS = pytest.mark.parametrize("kind", BOTH, ids=["sync", "asyncio"])


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five attempts wait 0.3 s together instead of 3: for what is so after them, and not for how long they take."""
    options = dict[str, Any](channel.OPTIONS)
    config = json.loads(options["grpc.service_config"])
    for method in config["methodConfig"]:
        if "retryPolicy" in method:
            method["retryPolicy"] |= {"initialBackoff": "0.02s", "maxBackoff": "0.2s"}
    options["grpc.service_config"] = json.dumps(config)
    monkeypatch.setattr(channel, "OPTIONS", tuple(options.items()))
