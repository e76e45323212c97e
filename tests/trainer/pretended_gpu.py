"""A GPU for machines that have none: tensors of the CPU that say they are on it, and refuse what a real one refuses.

Seen by it: an operation on tensors of both devices, a generator of the other device, NumPy of a tensor that is on the
GPU, and where a program waits for the GPU. Not seen: which kernels a GPU lacks, how it rounds, what it takes.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import CodeType
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from trainer import checkpoint, feed
from trainer.checkpoint import Checkpoint

GPU = torch.device("cuda", 0)

_aten: Any = torch.ops.aten
_DispatchMode: Any = TorchDispatchMode  # their methods have no types
_FunctionMode: Any = TorchFunctionMode
# What needs to know values before it can go on.
_WAITING = (
    _aten._local_scalar_dense,
    _aten.nonzero,
    _aten.masked_select,
    _aten._unique2,
    _aten.bincount,
    _aten.equal,
)
_INDEXING = (_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_)
_STATE_BYTES = 16  # of a CUDA generator; a CPU's has thousands
_ROOT = str(Path(__file__).parents[2] / "trainer")
_here = threading.local()


class TwoDevices(RuntimeError):
    """An operation was given tensors of the CPU and of the GPU."""


@dataclass(frozen=True)
class Wait:
    """A place where the program waited for the GPU.

    Attributes:
        what: made it wait.
        line: of the trainer, `file:number`.
        within: the functions that it is called from.
    """

    what: str
    line: str
    within: frozenset[CodeType] = field(repr=False)


class PretendedGpu:
    """What was seen of the program.

    Attributes:
        waits: for the GPU, in order.
    """

    def __init__(self) -> None:
        self.waits: list[Wait] = []

    def waits_within(self, *functions: Any) -> list[str]:
        """What waited, and where, in these functions and what they call."""
        codes = {function.__code__ for function in functions}
        return [f"{wait.what} at {wait.line}" for wait in self.waits if wait.within & codes]

    def note(self, what: str) -> None:
        """The program waits here."""
        frame, within, line = sys._getframe(1), set(), "?"
        while frame is not None:
            if line == "?" and frame.f_code.co_filename.startswith(_ROOT):
                line = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            within.add(frame.f_code)
            frame = cast("Any", frame.f_back)
        self.waits.append(Wait(what, line, frozenset(within)))


class _OnGpu(Tensor):
    """A tensor that says it is on the GPU; `held` is the one that it is."""

    held: Tensor
    device = property(lambda _: GPU)
    is_cuda = property(lambda _: True)
    is_cpu = property(lambda _: False)

    @staticmethod
    def __new__(cls: type["_OnGpu"], held: Tensor, requires_grad: bool = False) -> "_OnGpu":
        made: _OnGpu = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, requires_grad=requires_grad
        )
        made.held = held
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> "_OnGpu":
        if id(self) not in memo:
            copy = memo[id(self)] = _OnGpu(self.held.clone(), self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copy._is_param = True
        return cast("_OnGpu", memo[id(self)])

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @classmethod
    def __torch_function__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, operation: Any, *_: Any) -> Any:
        raise RuntimeError(f"{operation} outside the machine with the pretended GPU")


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple, dict)):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def _mapped(values: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Nested lists, tuples and dictionaries with the function's tensors in the place of theirs."""
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, dict):
        return {key: _mapped(value, function) for key, value in values.items()}
    return type(values)(_mapped(value, function) for value in values) if isinstance(values, (list, tuple)) else values


def _held(values: Any) -> Any:
    return _mapped(values, lambda tensor: tensor.held if isinstance(tensor, _OnGpu) else tensor)


class _Operations(_DispatchMode):
    """Every operation: checks where its tensors are, does it on what they hold, and puts the result there too."""

    def __init__(self, gpu: PretendedGpu):
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, kind = kwargs or {}, operation.overloadpacket
        tensors = list(_tensors((args, kwargs)))
        mine = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, _OnGpu)}
        others = [tensor for tensor in tensors if not isinstance(tensor, _OnGpu)]
        result_is_mine = bool(mine) or (not tensors and getattr(_here, "on_gpu", False))
        if kind is _aten.copy_:
            result_is_mine = isinstance(args[0], _OnGpu)
            if mine and others and not (len(args) > 2 and args[2]):
                self._gpu.note("a copy between devices")
        elif mine and kind in _INDEXING:
            self._check_index(operation, args)
        elif mine and others:
            # A CPU's scalar may meet the GPU's tensors, in what goes element by element.
            elementwise = torch.Tag.pointwise in operation.tags or kind in (_aten.fill_, _aten.where)
            if not elementwise or any(tensor.ndim for tensor in others) or not isinstance(tensors[0], _OnGpu):
                raise TwoDevices(f"{operation}: {[(tuple(tensor.shape), str(tensor.device)) for tensor in tensors]}")
        if mine and kind in _WAITING:
            self._gpu.note(str(operation))
        args, kwargs = _held((args, kwargs))
        result = operation(*args, **kwargs)
        if not result_is_mine:
            return result
        return _mapped(result, lambda tensor: mine[id(tensor)] if id(tensor) in mine else _OnGpu(tensor))

    def _check_index(self, operation: Any, args: Any) -> None:
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        values = [value for value in args[2:3] if value.ndim]
        if not all(isinstance(tensor, _OnGpu) for tensor in (args[0], *values)):
            raise TwoDevices(f"{operation}: of, or with, the CPU's values")
        if not all(isinstance(index, _OnGpu) for index in indices):
            self._gpu.note("an index of the CPU")
        if any(index.dtype == torch.bool for index in indices):
            self._gpu.note("a boolean index")


class _Calls(_FunctionMode):
    """Every call of torch: what names a device."""

    def __init__(self, gpu: PretendedGpu):
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        mine = any(isinstance(tensor, _OnGpu) for tensor in _tensors((args, kwargs)))
        if function is Tensor.to:
            return self._moved(*args, **kwargs)
        if function is Tensor.cpu:
            return self._moved(*args, "cpu", **kwargs)
        if function is Tensor.pin_memory and not mine:
            return args[0].clone()
        if function is Tensor.tolist and mine:
            self._gpu.note("tolist")
            return args[0].held.tolist()
        if mine and function in (Tensor.numpy, Tensor.__array__, Tensor.pin_memory):
            raise TypeError(f"{function.__name__} of a tensor on the GPU")
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        kind = device.type if device else "cuda" if mine else "cpu"
        if kwargs.get("generator") is not None and kwargs["generator"].device.type != kind:
            raise TwoDevices(f"{function.__name__} on {kind} with a generator on {kwargs['generator'].device}")
        if device:
            kwargs["device"] = "cpu"
            if function is torch.tensor and kind == "cuda":
                self._gpu.note("torch.tensor on the GPU")
                return _OnGpu(torch.tensor(*args, **kwargs))
        with _making(on_gpu=kind == "cuda" if device or mine else getattr(_here, "on_gpu", False)):
            return function(*args, **kwargs)

    def _moved(self, tensor: Tensor, *where: Any, copy: bool = False, **named: Any) -> Tensor:
        memory_format = named.pop("memory_format", None) or torch.preserve_format
        like = where[0] if where else named.get("other")
        if isinstance(like, Tensor):
            device, dtype, non_blocking = like.device, like.dtype, named.get("non_blocking", False)
        else:
            device, dtype, non_blocking, _ = torch._C._nn._parse_to(*where, **named)
        to_gpu = isinstance(tensor, _OnGpu) if device is None else device.type == "cuda"
        dtype = dtype or tensor.dtype
        if to_gpu == isinstance(tensor, _OnGpu):
            return Tensor.to(tensor, dtype, copy=copy, memory_format=memory_format)
        if to_gpu:
            if not non_blocking:
                self._gpu.note("a copy to the GPU")
            moved = tensor.detach().to(dtype, copy=True, memory_format=memory_format)
            return _OnGpu(moved, tensor.requires_grad)
        self._gpu.note("a copy from the GPU")
        return cast("_OnGpu", tensor).held.to(dtype, copy=True, memory_format=memory_format)


@contextmanager
def _making(*, on_gpu: bool) -> Iterator[None]:
    """Where tensors are made within."""
    before = getattr(_here, "on_gpu", False)
    _here.on_gpu = on_gpu
    try:
        yield
    finally:
        _here.on_gpu = before


_Generator = torch.Generator


class _PretendedGenerator(_Generator):
    """A generator of either device; a CPU's in truth."""

    device = property(lambda self: self.pretended)

    def __new__(cls, device: Any = "cpu") -> "_PretendedGenerator":
        return _Generator.__new__(cls, "cpu")  # type: ignore[call-arg]

    def __init__(self, device: Any = "cpu"):
        self.pretended = torch.device(device)

    def get_state(self) -> Tensor:
        state = super().get_state()
        return state if self.pretended.type == "cpu" else state[:_STATE_BYTES].clone()

    def set_state(self, new_state: Tensor) -> "_PretendedGenerator":
        if self.pretended.type == "cuda":
            assert (len(new_state), new_state.is_cpu) == (_STATE_BYTES, True)
            return self
        return cast("_PretendedGenerator", super().set_state(new_state))


@contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch, *, free_bytes: int = 2**40) -> Iterator[PretendedGpu]:
    """A machine with one GPU, in this thread and those of the trainer's loader; leaves it as it was.

    Args:
        monkeypatch: what undoes it.
        free_bytes: of the GPU's memory.
    """
    gpu = PretendedGpu()

    def enter_modes() -> None:
        _Calls(gpu).__enter__()
        _Operations(gpu).__enter__()

    def pool(*args: Any, **named: Any) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(*args, **named, initializer=enter_modes)

    with monkeypatch.context() as patch:
        _pretend_cuda(patch, free_bytes)
        patch.setattr(feed, "ThreadPoolExecutor", pool)
        patch.setattr(checkpoint, "save", _saving_what_is_held(checkpoint.save))
        with _Calls(gpu), _Operations(gpu):
            yield gpu


def _pretend_cuda(patch: pytest.MonkeyPatch, free_bytes: int) -> None:
    state = torch.zeros(_STATE_BYTES, dtype=torch.uint8)
    answers: dict[str, Any] = {
        "is_available": True,
        "is_bf16_supported": True,
        "mem_get_info": (free_bytes, free_bytes),
        "get_rng_state": state,
        "set_rng_state": None,
    }
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    patch.setattr(torch.accelerator, "is_available", lambda: False)  # optimisers ask it whether a graph is captured
    patch.setattr(torch, "Generator", _PretendedGenerator)
    autocast = torch.autocast
    patch.setattr(torch, "autocast", lambda _, *args, **named: autocast("cpu", *args, **named))
    group = torch._C._group_tensors_by_device_and_dtype

    def grouped(lists: Any, with_indices: bool) -> Any:
        found = group(lists, with_indices)
        devices = [
            next(tensor.device for tensor in tensors[0] if tensor is not None) for tensors, _ in found.values()
        ]
        return {(device, dtype): of for device, ((_, dtype), of) in zip(devices, found.items(), strict=True)}

    patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", grouped)
    # As a module that moves to a real GPU, it keeps its parameters, and gives them other values.
    patch.setattr(torch.__future__, "get_swap_module_params_on_conversion", lambda: True)


def _saving_what_is_held(save: Any) -> Any:
    """As torch.save and safetensors do with the GPU's tensors."""

    def saved(folder: Path, state: Checkpoint) -> Path:
        weights, rest = _held((state.weights, state.state))
        return cast("Path", save(folder, replace(state, weights=weights, state=rest)))

    return saved
