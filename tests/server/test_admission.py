"""Admission."""

import pytest

from server.admission import Admission
from server.errors import Draining, Overloaded


def test_a_place_is_free_again_after_its_request() -> None:
    """The bound is on what is inside at once, also when a request fails."""
    admission = Admission(max_requests=1)
    for _ in range(3):
        with pytest.raises(KeyError), admission.admit(0):
            raise KeyError
    with admission.admit(0), pytest.raises(Overloaded, match="1 requests are in progress"):
        admission.admit(0)


def test_images_are_bounded_by_their_bytes_together() -> None:
    """Requests without an image still get in when the images fill the bound."""
    admission = Admission(max_bytes=100)
    with admission.admit(60):
        with pytest.raises(Overloaded, match="60 bytes"):
            admission.admit(41)
        with admission.admit(40), admission.admit(0):
            pass


def test_nobody_gets_in_while_draining() -> None:
    """Who is inside may finish."""
    admission = Admission()
    with admission.admit(0):
        admission.drain()
        with pytest.raises(Draining):
            admission.admit(0)
