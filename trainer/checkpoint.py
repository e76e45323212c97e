"""Checkpoints of a training run: whole or not there, verified when read, the last two kept.

A checkpoint is a directory: `weights.safetensors` (the objective's parameters and buffers), `state.pt` (optimiser and
random generators, loaded as data only) and `manifest.json`, which holds the size and SHA-256 of both.

    CheckpointError   no checkpoint of a run can be read; the message names each with its reason
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from indexer.manifest import MANIFEST, FileRecord, discard, record, record_files, sync

_PREFIX = "step-"
_WEIGHTS, _STATE = "weights.safetensors", "state.pt"
_KEPT = 2  # the newest, and the one before it in case the newest is damaged
_WRITING = ".writing"


class CheckpointError(RuntimeError):
    """A run has checkpoints, and none can be read."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where in its run a training is.

    Attributes:
        epoch: the current one, from 0.
        step: steps done in this epoch.
        total_steps: steps done in the run.
        images: digest of the training set's items, in order.
    """

    epoch: int
    step: int
    total_steps: int
    images: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that continuing a run needs.

    Attributes:
        position: where it was.
        weights: the objective's state.
        state: of optimiser and generators, and the epoch's sampling order; tensors and plain values only.
    """

    position: Position
    weights: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint to a run's folder and drop all but the last two.

    After a crash at any moment the new checkpoint is there whole or not at all.

    Raises:
        OSError: the disk is full; the earlier checkpoints stay.
    """
    target = folder / f"{_PREFIX}{checkpoint.position.total_steps:09d}-{checkpoint.position.epoch:05d}"
    staging = folder / _WRITING
    discard(staging)
    staging.mkdir(parents=True)
    try:
        save_weights({name: value.contiguous() for name, value in checkpoint.weights.items()}, staging / _WEIGHTS)
        _save_state(checkpoint.state, staging / _STATE)
        files = {name: asdict(entry) for name, entry in record_files(staging).items()}
        receipt = {"files": files, "position": asdict(checkpoint.position)}
        (staging / MANIFEST).write_text(json.dumps(receipt))
        for path in staging.iterdir():
            sync(path)
        discard(target)  # a run that continued from an older checkpoint comes by again
        staging.rename(target)
    except BaseException:
        discard(staging)
        raise
    sync(folder)
    for old in _all(folder)[_KEPT:]:
        discard(old)
    return target


def save_weights(weights: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; raises OSError where that fails, which the library calls something else."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(weights, path, metadata)
    except SafetensorError as error:
        raise OSError(f"can't write {path}: {error}") from error
    path.chmod(mode)  # the library lets its owner alone read it, and who serves a model may be another


def _save_state(state: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch's own, about positions in the file, hides that of a full disk
        raise OSError(f"can't write {path}: {error.__context__ or error}") from error


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest readable checkpoint in a run's folder, on the CPU, and a warning for each newer one that is damaged.

    Returns:
        None where the run has no checkpoint yet.

    Raises:
        CheckpointError: there are checkpoints, and none can be read.
    """
    warnings: list[str] = []
    for directory in _all(folder):
        try:
            return _read(directory), warnings
        except Exception as error:  # a damaged file can fail anywhere in three parsers; all of it means one thing
            warnings.append(f"checkpoint {directory.name} is damaged and was passed over: {error}")
    if warnings:
        raise CheckpointError(f"no checkpoint in {folder} can be read; start a new run. " + "; ".join(warnings))
    return None, warnings


def _read(directory: Path) -> Checkpoint:
    receipt = json.loads((directory / MANIFEST).read_bytes())
    for name, entry in receipt["files"].items():
        found = record(directory / name)
        if found != FileRecord(**entry):
            raise ValueError(f"{name} has {found.bytes:,} bytes of other content than the {entry['bytes']:,} written")
    return Checkpoint(
        position=Position(**receipt["position"]),
        weights=load_file(directory / _WEIGHTS),
        state=torch.load(directory / _STATE, "cpu", weights_only=True),
    )


def _all(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    return sorted(folder.glob(f"{_PREFIX}*"), reverse=True)
