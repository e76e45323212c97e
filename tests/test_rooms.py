"""The import table: which room may import which, and which library lives where."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("trainer", "indexer", "server", "clients/python/kinsight_client", "clients/cli")
OURS = {"trainer", "indexer", "server", "clients", "kinsight", "kinsight_client"}

# Of ours, what a room may import besides itself.
ALLOWED = {
    "trainer": {
        f"indexer.{part}" for part in ("pixels", "manifest", "sources", "encoder", "finder", "pairs", "locks")
    },
    "indexer": set(),
    "server": {"indexer", "kinsight"},
    "clients/python/kinsight_client": {"kinsight"},
    "clients/cli": {"trainer", "indexer", "server", "kinsight_client"},
}
LIVES_IN = {
    "torch": {"trainer"},
    "torchvision": {"trainer"},
    "timm": {"trainer"},
    "faiss": {"indexer"},
    "onnxruntime": {"indexer"},
    "grpc": {"server", "clients/python/kinsight_client"},
}


def files(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found, f"no files in {room}"
    return found


def imports(node: ast.AST) -> Iterator[str]:
    """Full names of what is imported anywhere below a node; of `from a import b`, a.b."""
    for statement in ast.walk(node):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"line {statement.lineno}: imports name their room"
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def lies_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    """No room reaches into one that the table does not name."""
    own = room.replace("/", ".").removeprefix("clients.python.")
    allowed = {own, *ALLOWED[room]}
    wrong = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files(room)
        for name in imports(ast.parse(file.read_text()))
        if name.partition(".")[0] in OURS and not any(lies_in(name, package) for package in allowed)
    ]

    assert wrong == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_library_lives_in_its_room(room: str) -> None:
    """Torch is imported by the trainer alone, FAISS and ONNX Runtime by the indexer, gRPC by server and client."""
    wrong = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files(room)
        for name in imports(ast.parse(file.read_text()))
        if room not in LIVES_IN.get(name.partition(".")[0], {room})
    ]

    assert wrong == []


def test_the_command_loads_rooms_lazily() -> None:
    """At the top of a verb's file there is no room, so `kinsight --help` is instant; drawing alone needs pixels."""
    top_level = {
        (file.name, name.partition(".")[0])
        for file in files("clients/cli")
        for statement in ast.parse(file.read_text()).body
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for name in imports(statement)
        if name.partition(".")[0] in OURS - {"clients"}
    }

    assert {("grid.py", "indexer")} == top_level


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import server.app", ("torch", "trainer", "timm")),
        ("import indexer.build, indexer.version", ("torch", "trainer", "grpc")),
        # What a network, a report or a named set brings is loaded with the first of them: it takes seconds.
        ("import trainer.run", ("grpc", "faiss", "timm", "torchvision", "torch._dynamo", "sklearn")),
        ("import trainer.recipe_files", ("torch", "timm")),
        ("import kinsight_client", ("torch", "faiss", "onnxruntime", "indexer", "click")),
        ("import clients.cli.command", ("torch", "faiss", "onnxruntime", "grpc", "numpy", "PIL", "rich")),
    ],
)
def test_a_fresh_process_loads_no_foreign_library(statement: str, absent: tuple[str, ...]) -> None:
    """What a room must not need is not loaded by it in a process of its own, directly or through others."""
    code = f"import sys; {statement}; print(*[name for name in {absent!r} if name in sys.modules])"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert loaded.stdout.strip() == ""
