"""`kinsight doctor`: what is installed, what works, and what is wrong with its remedy."""

import importlib
import platform
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from clients.cli.options import json_option
from clients.cli.output import print_facts, print_json

# Each of these installs a module of the same name as its neighbours in the list; the last one installed wins.
FAISS_PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cuvs")
ONNXRUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")

# Those that Kinsight never uses: the one starts anywhere, and only sends work to a service on the network; the other
# needs libraries that the gpu extra does not install.
UNUSED_PROVIDERS = {"AzureExecutionProvider", "TensorrtExecutionProvider"}

_LISTED = (
    "kinsight",
    "numpy",
    "pillow",
    "pillow-heif",
    "grpcio",
    "protobuf",
    "click",
    "rich",
    "pyarrow",
    "onnx",
    "timm",
)

# What tells that an extra is not wanted, because the other one of the pair is there.
_INSTEAD_OF = {"cpu": "faiss-gpu", "gpu": "faiss-cpu"}

# The smallest model there is, y = Identity(x): a session of it shows which execution providers really start.
# Made by onnx.helper; kept as bytes because serving does not install onnx.
IDENTITY_MODEL = (
    b'\x08\x08\x12\x00:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08'
    b"\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


@dataclass
class Report:
    """What the doctor found.

    Attributes:
        facts: name to value, in the order of printing.
        problems: what is broken, each with its remedy.
        notes: what is absent, but may be meant to be.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, problem: str, remedy: str) -> None:
        """Add a problem."""
        self.problems.append({"problem": problem, "remedy": remedy})


@click.command()
@click.option(
    "--store",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Also read every byte of the models, versions and catalogues of this store; a server may have it open.",
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, store: Path | None, as_json: bool) -> None:
    """Say what is installed and works, and how to mend the rest.

    Exits with 1 if something is broken. An extra that is not installed at all is a note, not a problem.

    \b
    JSON keys: ok, python, platform, packages{}, faiss{package, version, simd, gpus},
    onnxruntime{package, version, providers[]}, torch{version, torchvision, cuda, devices[]}, store{models, indexes},
    problems[].problem, problems[].remedy, notes[]
    """
    report = examine()
    if store is not None:
        _check_store(report, store)
    if as_json:
        found = {**report.facts, "problems": report.problems, "notes": report.notes}
        print_json({"ok": not report.problems, **found})
    else:
        _print(report)
    if report.problems:
        ctx.exit(1)


def examine(installed: Callable[[str], str | None] | None = None) -> Report:
    """Examine this Python environment.

    Args:
        installed: a package's version or None; how the tests describe broken environments.
    """
    installed = installed or installed_version
    report = Report()
    report.facts["python"] = platform.python_version()
    report.facts["platform"] = f"{platform.system()} {platform.machine()}, {platform.libc_ver()[1] or 'no'} glibc"
    report.facts["packages"] = {name: version for name in _LISTED if (version := installed(name))}
    _check_extras(report, installed)
    _check_faiss(report, [name for name in FAISS_PACKAGES if installed(name)])
    _check_onnxruntime(report, [name for name in ONNXRUNTIME_PACKAGES if installed(name)])
    _check_torch(report, installed)
    return report


def _check_store(report: Report, root: Path) -> None:
    from indexer.damage import damages
    from indexer.store import Store

    place = Store(root)
    report.facts["store"] = {"models": len(place.model_ids()), "indexes": len(place.index_names())}
    for error in damages(place):
        problem, _, remedy = str(error).rpartition("; ")
        report.problem(problem or remedy, remedy if problem else "restore it from a copy, or build it again")


def installed_version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _check_extras(report: Report, installed: Callable[[str], str | None]) -> None:
    for extra, packages in _extras().items():
        missing = [name for name in packages if not installed(name)]
        if not missing:
            continue
        own = [name for name in packages if name not in _shared_with_other_extras(extra)]
        if all(name in missing for name in own):
            if extra in _INSTEAD_OF and installed(_INSTEAD_OF[extra]):
                continue
            report.notes.append(f"[{extra}] is not installed: pip install 'kinsight[{extra}]'")
        else:
            report.problem(
                f"[{extra}] is incomplete: {', '.join(missing)} missing",
                f"pip install -c constraints.txt 'kinsight[{extra}]'",
            )


def _extras() -> dict[str, list[str]]:
    """The packages of the extras that users choose from."""
    packages: dict[str, list[str]] = {"cpu": [], "gpu": [], "heic": [], "train": []}
    for requirement in metadata.requires("kinsight") or []:
        match = re.match(r"([A-Za-z0-9_.-]+).*extra == ['\"](\w+)['\"]", requirement)
        if match and match[2] in packages:
            packages[match[2]].append(match[1])
    return packages


def _shared_with_other_extras(extra: str) -> set[str]:
    return {name for other, packages in _extras().items() if other != extra for name in packages}


def _check_faiss(report: Report, packages: list[str]) -> None:
    if len(packages) > 1:
        report.problem(
            f"{' and '.join(packages)} are installed together; both are the module faiss, and one broke the other",
            f"pip uninstall -y {' '.join(packages)}; then pip install -c constraints.txt 'kinsight[cpu]' or '[gpu]'",
        )
    faiss = _imported(report, "faiss", packages)
    if faiss is None:
        return
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    simd = faiss.SIMDConfig.get_level_name() if hasattr(faiss, "SIMDConfig") else faiss.get_compile_options().strip()
    report.facts["faiss"] = {
        "package": ", ".join(packages),
        "version": faiss.__version__,
        "simd": simd,
        "gpus": gpus,
    }
    if simd in ("NONE", "GENERIC"):
        report.problem(
            f"this FAISS uses no SIMD instructions on this CPU ({simd}); fast-scan codes are many times slower",
            "pip install -c constraints.txt 'kinsight[cpu]' in a fresh environment",
        )


def _check_onnxruntime(report: Report, packages: list[str]) -> None:
    if len(packages) > 1:
        report.problem(
            f"{' and '.join(packages)} are installed together; the GPU build loses CUDA that way",
            f"pip uninstall -y {' '.join(packages)}; then pip install the one that you mean",
        )
    import indexer  # noqa: F401  before it: keeps it from telling Microsoft what it is used for

    onnxruntime = _imported(report, "onnxruntime", packages)
    if onnxruntime is None:
        return
    live = _live_providers(onnxruntime)
    report.facts["onnxruntime"] = {
        "package": ", ".join(packages),
        "version": onnxruntime.__version__,
        "providers": live,
    }
    if not live:
        report.problem(
            "ONNX Runtime starts no session with any provider", f"pip install --force-reinstall {packages[0]}"
        )
    if "onnxruntime-gpu" in packages and "CUDAExecutionProvider" not in live and has_nvidia_gpu():
        report.problem(
            "onnxruntime-gpu does not reach the GPU and would embed on the CPU",
            "install the CUDA and cuDNN that it was built for: pip install 'onnxruntime-gpu[cuda,cudnn]'",
        )


def _live_providers(onnxruntime: Any) -> list[str]:
    """The providers with which a session really starts; a listed one may lack its libraries."""
    # A provider without its libraries logs an error; the list is the answer.
    onnxruntime.set_default_logger_severity(4)
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        with redirect_stdout(sys.stderr):  # where it prints which of them it misses; the report goes to stdout
            onnxruntime.preload_dlls()  # as the encoder does: finds the CUDA libraries that pip installed beside it
    live = []
    for provider in set(onnxruntime.get_available_providers()) - UNUSED_PROVIDERS:
        try:
            # Its fall-back to the CPU prints to stdout, where the report goes.
            session = onnxruntime.InferenceSession(IDENTITY_MODEL, providers=[provider], enable_fallback=False)
        except Exception:  # noqa: S112  each provider fails in its own way; not live is what is asked
            continue
        if provider in session.get_providers():
            live.append(provider)
    return sorted(live)


def _check_torch(report: Report, installed: Callable[[str], str | None]) -> None:
    packages = [name for name in ("torch", "torchvision") if installed(name)]
    torch = _imported(report, "torch", packages)
    if torch is None:
        return
    found = report.facts["torch"] = {
        "version": torch.__version__,
        "torchvision": installed("torchvision"),
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    try:
        ops = importlib.import_module("torchvision.ops")
        ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # a compiled operator: only a matching pair has it
    except (ImportError, RuntimeError, OSError) as error:
        report.problem(
            f"torch {torch.__version__} and torchvision {installed('torchvision')} don't fit: {error}",
            "pip install -c constraints.txt torch torchvision",
        )
    if has_nvidia_gpu() and not found["devices"]:
        report.problem(
            f"there is an NVIDIA GPU, but torch (built for CUDA {torch.version.cuda}) does not reach it",
            "update the NVIDIA driver, or install a torch that was built for its CUDA version",
        )


def _imported(report: Report, module: str, packages: list[str]) -> Any:
    """The module; None where no package brings it, or where importing it fails, which is a problem."""
    if not packages:
        return None
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        report.problem(
            f"{packages[0]} is installed but does not import: {error}", f"pip install --force-reinstall {packages[0]}"
        )
        return None


def has_nvidia_gpu() -> bool:
    """Whether the kernel shows an NVIDIA GPU, whatever the libraries say."""
    return Path("/dev/nvidia0").exists()


def _print(report: Report) -> None:
    print_facts({name: _plain(value) for name, value in report.facts.items()})
    for note in report.notes:
        click.echo(f"note: {note}")
    for found in report.problems:
        click.echo(f"problem: {found['problem']}\n  remedy: {found['remedy']}")
    if not report.problems:
        click.echo("all that is installed works" + (", and the store is whole" if "store" in report.facts else ""))


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value)
