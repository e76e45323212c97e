"""Pages of lists: how many at a time, and tokens that go with the arguments that they were given out for."""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from server.errors import InvalidPageToken, PageSizeOutOfRange

DEFAULT_SIZE, MAX_SIZE = 100, 1000
_DIGEST_BYTES = 8

_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class Page:
    """Which part of a list is asked for.

    Attributes:
        size: entries at most.
        after: the key of the last entry of the page before; empty for the first page.
        arguments: what has to be the same for every page.
    """

    size: int
    after: str
    arguments: tuple[str, ...]

    @classmethod
    def asked(cls, size: int, token: str, *arguments: str) -> "Page":
        """The page of a request.

        Raises:
            PageSizeOutOfRange: `size` is negative.
            InvalidPageToken: it was not given out for these arguments.
        """
        if size < 0:
            raise PageSizeOutOfRange(f"page_size is {size}; it must be 0 (for {DEFAULT_SIZE}) or more")
        return cls(min(size or DEFAULT_SIZE, MAX_SIZE), _opened(token, arguments), arguments)

    def token(self, last: str) -> str:
        """What asks for the page after the entry of this key."""
        return base64.urlsafe_b64encode(_digest(self.arguments, last) + last.encode()).decode()


@dataclass(frozen=True)
class Part(Generic[_Entry]):
    """One page of a list; `token` is empty on the last one."""

    entries: list[_Entry]
    token: str


def part(keyed: Sequence[tuple[str, _Entry]], page: Page) -> Part[_Entry]:
    """A page of a list that is at hand, ascending by key."""
    left = [(key, entry) for key, entry in keyed if not page.after or key > page.after]
    shown = left[: page.size]
    return Part([entry for _, entry in shown], page.token(shown[-1][0]) if len(left) > len(shown) else "")


def _opened(token: str, arguments: tuple[str, ...]) -> str:
    if not token:
        return ""
    try:
        data = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
        digest, after = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:].decode()
    except (binascii.Error, UnicodeError) as error:
        raise InvalidPageToken("page_token is not one that this server gave out; leave it empty to begin") from error
    if digest != _digest(arguments, after):
        raise InvalidPageToken(
            "page_token was given out for other arguments, or is not whole; ask with those of the first page, or "
            "leave it empty to begin"
        )
    return after


def _digest(arguments: tuple[str, ...], last: str) -> bytes:
    # The place too: a token that lost its end on the way would lead to another one.
    return hashlib.sha256(repr((arguments, last)).encode()).digest()[:_DIGEST_BYTES]
