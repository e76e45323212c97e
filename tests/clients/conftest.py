"""The store and the server that these tests share."""

from tests.serving import gallery, served

__all__ = ["gallery", "served"]
