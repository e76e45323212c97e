"""The store and the server that these tests share, and clients that soon give up."""

from tests.clients.both import quick_retries
from tests.serving import gallery, served

__all__ = ["gallery", "quick_retries", "served"]
