"""Freed tensors stay with the process."""

import platform
import subprocess
import sys

import pytest

# Fills and frees 64 MiB twenty times, without the settings and then with them; prints the page faults of the last ten
# of each, when the heap has its size.
CHILD = """
import resource
import torch
from trainer.memory import keep_freed_memory
def faults():
    for _ in range(10):
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
left = faults()
assert keep_freed_memory()
print(left, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_tensors_are_reused_without_page_faults() -> None:
    """Without the settings each large tensor is paged in anew; with them nearly none is."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    left, kept = map(int, done.stdout.split())
    assert kept * 10 < left
