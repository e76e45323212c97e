"""The wire contract: its style, and that the stubs beside it are its own."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from grpc_tools import protoc  # type: ignore[import-untyped]

PROTO = Path(__file__).parents[2] / "proto"
SERVICE = "kinsight/v1/search_service"
BUNDLED = Path(protoc.__file__).with_name("_proto")  # google/protobuf/*.proto
BUF = Path(sys.executable).with_name("buf")


def _common_protos() -> Path:
    """Where googleapis-common-protos keeps its .proto files."""
    spec = find_spec("google.api.field_behavior_pb2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[2]


@pytest.mark.skipif(not BUF.exists(), reason="buf is not installed; pip install buf-bin")
def test_the_protos_pass_buf_lint(tmp_path: Path) -> None:
    """By proto/buf.yaml, with Google's annotations from the installed package instead of the network."""
    shutil.copytree(PROTO / "kinsight", tmp_path / "proto/kinsight")
    (tmp_path / "common/google/api").mkdir(parents=True)
    shutil.copy(_common_protos() / "google/api/field_behavior.proto", tmp_path / "common/google/api")
    rules = (PROTO / "buf.yaml").read_text()
    assert "- path: ." in rules
    (tmp_path / "buf.yaml").write_text(rules.replace("- path: .", "- path: proto\n  - path: common"))
    result = subprocess.run([BUF, "lint", "proto"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_committed_stubs_are_what_the_protos_generate(tmp_path: Path) -> None:
    """To renew them: python -m grpc_tools.protoc, with the arguments below, into proto/."""
    arguments = [f"-I{PROTO}", f"-I{_common_protos()}", f"-I{BUNDLED}"]
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", *arguments, *outputs, f"{SERVICE}.proto"]) == 0
    for name in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"):
        assert (PROTO / f"{SERVICE}{name}").read_text() == (tmp_path / f"{SERVICE}{name}").read_text()
