"""Processes that are measured in turns, so that what else the machine does slows all of them alike."""

import multiprocessing
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any


def start(run: Callable[..., None], *arguments: object) -> Connection:
    """Start `run(*arguments, turns)` as a process.

    For each message on `turns` it has to do one turn of its work and send what that gave.
    """
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    context.Process(target=run, args=(*arguments, theirs)).start()
    theirs.close()  # so that its end is heard
    return mine


def take_turns(processes: Mapping[str, Connection], count: int) -> dict[str, list[Any]]:
    """Let each do so many turns, one at a time; what each turn gave, by process."""
    found: dict[str, list[Any]] = {name: [] for name in processes}
    for _ in range(count):
        for name, process in processes.items():
            process.send("your turn")
            found[name].append(process.recv())
    return found
