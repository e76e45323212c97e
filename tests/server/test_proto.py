"""The wire contract: its style, and that the stubs beside it are its own."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from grpc_tools import protoc  # type: ignore[import-untyped]

PROTO = Path(__file__).parents[2] / "proto"
NAMES = sorted(path.stem for path in PROTO.glob("kinsight/v1/*.proto"))
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
    for package in ("api", "longrunning", "rpc"):
        (tmp_path / "common/google" / package).mkdir(parents=True)
        for path in (_common_protos() / "google" / package).glob("*.proto"):
            # the one file that the package keeps under another name than everybody imports it by
            name = path.name.replace("operations_proto.proto", "operations.proto")
            shutil.copy(path, tmp_path / "common/google" / package / name)
    rules = (PROTO / "buf.yaml").read_text()
    assert "- path: ." in rules
    (tmp_path / "buf.yaml").write_text(rules.replace("- path: .", "- path: proto\n  - path: common"))
    cached = {**os.environ, "BUF_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run(
        [BUF, "lint", "proto"], cwd=tmp_path, env=cached, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_committed_stubs_are_what_the_protos_generate(tmp_path: Path) -> None:
    """To renew them: `make proto`, which runs protoc with the arguments below."""
    renamed = f"google/longrunning/operations.proto={_common_protos()}/google/longrunning/operations_proto.proto"
    arguments = [f"-I{path}" for path in (renamed, PROTO, _common_protos(), BUNDLED)]
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    files = [f"kinsight/v1/{name}.proto" for name in NAMES]
    assert protoc.main(["protoc", *arguments, *outputs, *files]) == 0
    generated = sorted(tmp_path.glob("kinsight/v1/*.py*"))
    assert len(generated) == 3 * len(NAMES)
    for path in generated:
        assert (PROTO / path.relative_to(tmp_path)).read_text() == path.read_text(), path.name


@pytest.mark.parametrize("name", NAMES)
def test_the_stubs_can_be_imported(name: str) -> None:
    """With what the packages that they import register, by the names that they are imported by."""
    for suffix in ("_pb2", "_pb2_grpc"):
        import_module(f"kinsight.v1.{name}{suffix}")
