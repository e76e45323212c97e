"""What is installed: the packages, the extras, and the pins."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def needs(extra: str) -> set[str]:
    """Names of the packages that an extra brings, extras of our own followed."""
    found: set[str] = set()
    for requirement in map(Requirement, EXTRAS[extra]):
        if requirement.name == "kinsight":
            found |= {name for own in requirement.extras for name in needs(own)}
        else:
            found.add(requirement.name)
    return found


def test_the_version_is_that_of_pyproject() -> None:
    """`kinsight --version` reads the installed metadata, which must be this tree's."""
    assert PROJECT["version"] == metadata.version("kinsight")


def test_serving_does_not_install_torch() -> None:
    """Neither the client nor a server brings torch, and the client brings no FAISS or ONNX Runtime either."""
    base = {Requirement(line).name for line in PROJECT["dependencies"]}

    assert set() == {"torch", "torchvision", "timm"} & (base | needs("cpu") | needs("gpu"))
    assert {"googleapis-common-protos", "grpcio", "numpy", "protobuf"} == base


def test_cpu_and_gpu_bring_one_faiss_and_one_onnxruntime_each() -> None:
    """The two builds of a library share a module name, so each extra brings exactly one of them."""
    builds = re.compile(r"faiss-.*|onnxruntime.*")

    assert {"faiss-cpu", "onnxruntime"} == set(filter(builds.fullmatch, needs("cpu")))
    assert {"faiss-gpu", "onnxruntime-gpu"} == set(filter(builds.fullmatch, needs("gpu")))
    assert set() == set(filter(builds.fullmatch, needs("train")))


def test_every_direct_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    """constraints.txt pins all that pyproject asks for, inside its bounds."""
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    direct = [requirement for requirement in map(Requirement, lines) if requirement.name != "kinsight"]

    wrong = [str(r) for r in direct if pins().get(r.name) is None or not r.specifier.contains(pins()[r.name])]

    assert wrong == []


@pytest.mark.slow
def test_the_wheel_holds_every_room_and_no_tests(tmp_path: Path) -> None:
    """All importable packages, the recipes and the typing marks are shipped; the tests are not."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()

    expected = {
        "clients/cli/command.py",
        "indexer/pixels.py",
        "kinsight/v1/search_service_pb2.py",
        "kinsight_client/__init__.py",
        "server/app.py",
        "trainer/recipes/digits.toml",
        "trainer/recipes/stml.toml",
        "trainer/report.css",
        "trainer/sheet.css",
        "trainer/sheet.js",
    }
    assert set() == expected - set(names)
    assert [name for name in names if name.startswith(("tests", "proto"))] == []
