"""Freed tensors stay with the process."""

import platform
import subprocess
import sys

import pytest

# Fills and frees 64 MiB twenty times; prints the page faults of the last ten, when the heap has its size.
CHILD = """
import resource, sys
from trainer.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
before = faults()
for _ in range(10):
    torch.ones(2**24)
print(faults() - before)
"""


def faults_of(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", CHILD, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_tensors_are_reused_without_page_faults() -> None:
    """Without the settings each large tensor is paged in anew; with them nearly none is."""
    assert faults_of("keep") * 10 < faults_of("leave")
