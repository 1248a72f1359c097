"""Loading the compiled library, and saying what runs: compiled code for this processor, or plain torch.

    print(winograd.info())                     # cpu: avx512 (the best of ...); cuda: none (...); torch 2.13.0, 2 threads
    with winograd.library.force("reference"):  # to compare with
        model(images)

`load` finds the files that CMakeLists.txt describes beside this one, where winograd was built with a C++ compiler, and
built.json, which says what was left out and why. Without them everything works, slowly.
"""

import ctypes
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

REFERENCE = "reference"
IMPLEMENTATIONS = ("avx512", "avx2", "portable", REFERENCE)

log = logging.getLogger("winograd")


@dataclass(frozen=True)
class Info:
    """What computes Winograd convolutions in this process, and the reasons, each in a few words.

    `cpu` is one of IMPLEMENTATIONS, where "reference" is plain torch. `cuda` lists the architectures that the CUDA kernels
    were compiled for ("80", "90"); it is empty where plain torch computes on CUDA. `threads` are torch's.
    """

    cpu: str
    why: str
    cuda: tuple[str, ...]
    why_not_cuda: str
    torch: str
    threads: int

    def __str__(self) -> str:
        cuda = f"sm_{', sm_'.join(self.cuda)}" if self.cuda else f"none ({self.why_not_cuda})"
        return f"cpu: {self.cpu} ({self.why}); cuda: {cuda}; torch {self.torch}, {self.threads} threads"


class ImplementationUnavailable(ValueError):
    """The implementation that was asked for is not to be had here."""

    def __init__(self, name: str, available: Iterable[str], why: str) -> None:
        super().__init__(f"There is no implementation {name!r} here, only {', '.join(available)}: {why}.")
        self.name = name


def load() -> None:
    """Let the compiled library, if there is one, compute what `torch.ops.winograd` names; once, after these are defined.

    The environment variable WINOGRAD_IMPLEMENTATION may name the one of IMPLEMENTATIONS to keep to.
    """
    global _loaded
    if _loaded is not None:
        return
    _loaded = _load_from(Path(folder) for folder in sys.modules["winograd"].__path__)
    if wanted := os.environ.get("WINOGRAD_IMPLEMENTATION"):
        _use(wanted)
    log.info("%s", info())


def implementation() -> str:
    """Return the one of IMPLEMENTATIONS that computes on CPU: `info().cpu`, cheap enough to ask before every call."""
    return _forced or _library().best


def info() -> Info:
    """Say what computes Winograd convolutions, and why."""
    here = _library()
    if _forced is not None:
        why = "forced"
    elif here.variants:
        why = f"the best of {', '.join(here.variants)} on this processor"
    else:
        why = here.without_cpu
    is_reference = _forced == REFERENCE
    return Info(
        cpu=implementation(),
        why=why,
        cuda=() if is_reference else here.cuda,
        why_not_cuda="forced" if is_reference else here.without_cuda,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
    )


def variants() -> tuple[str, ...]:
    """Return the compiled implementations that this processor can run, the best first."""
    return _library().variants


@contextmanager
def force(name: str) -> Iterator[None]:
    """Let that one of IMPLEMENTATIONS compute during a block, in all threads, to compare results or speed.

    Packed weights have another order in the reference, which refuses those of compiled code: pack again inside the block.
    Raises ImplementationUnavailable.
    """
    before = _forced
    _use(name)
    try:
        yield
    finally:
        _use(before)


def native_operation_counts() -> tuple[int, int]:
    """Return matrix multiplications and multiplications that compiled code on CPU has executed since it was loaded or reset."""
    gemms, multiplications = ctypes.c_uint64(), ctypes.c_uint64()
    core = _library().core
    if core is not None:
        core.winograd_operation_counts(ctypes.byref(gemms), ctypes.byref(multiplications))
    return gemms.value, multiplications.value


def reset_native_operation_counts() -> None:
    """Begin to count from zero again."""
    core = _library().core
    if core is not None:
        core.winograd_reset_operation_counts()


@contextmanager
def without_tiles() -> Iterator[None]:
    """Let networks of integers do without the processor's tile registers (AMX) during a block, to compare results or speed.

    What is not there can be done without: nothing changes then.
    """
    core = _library().core
    if core is not None:
        core.winograd_integer_allow_tiles(0)
    try:
        yield
    finally:
        if core is not None:
            core.winograd_integer_allow_tiles(1)


def has_tiles() -> bool:
    """Return whether networks of integers are computed in tile registers (AMX), where `implementation()` is avx512."""
    core = _library().core
    return core is not None and implementation() == "avx512" and bool(core.winograd_integer_tiles_in_use())


def workspace_bytes() -> int:
    """Return how much memory compiled code keeps for its next calls."""
    core = _library().core
    return 0 if core is None else int(core.winograd_workspace_bytes())


def release_workspace() -> None:
    """Give that memory back."""
    core = _library().core
    if core is not None:
        core.winograd_release_workspace()


# ---- Loading ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Library:
    """What could be loaded, and why not more. Without `variants`, plain torch computes on CPU; without `cuda`, on CUDA."""

    without_cpu: str
    without_cuda: str
    core: ctypes.CDLL | None = None
    operators: ctypes.CDLL | None = None
    variants: tuple[str, ...] = ()
    cuda: tuple[str, ...] = ()

    @property
    def best(self) -> str:
        return self.variants[0] if self.variants else REFERENCE


_loaded: _Library | None = None
_forced: str | None = None


def _library() -> _Library:
    if _loaded is None:
        load()
    assert _loaded is not None
    return _loaded


def _load_from(folders: Iterable[Path]) -> _Library:
    # An editable installation has its Python files in one folder and the compiled ones in another.
    folder = next((folder for folder in folders if (folder / "built.json").is_file()), None)
    if folder is None:
        reason = "it was never built, only its source folder is in use; install it with pip"
        return _Library(reason, reason)
    built = json.loads((folder / "built.json").read_text())
    loaded = _Library(built["without_cpu"], built["without_cuda"])
    if not loaded.without_cpu:
        loaded = _load_cpu(folder, loaded)
    if not loaded.without_cuda:
        loaded = _load_cuda(folder, loaded, tuple(built["cuda_architectures"].split()))
    return loaded


def _load_cpu(folder: Path, loaded: _Library) -> _Library:
    try:
        core = ctypes.CDLL(str(folder / "libwinograd.so"))
        operators = ctypes.CDLL(str(folder / "libwinograd_torch.so"))  # registers itself
    except OSError as error:
        return replace(loaded, without_cpu=_not_loaded(error))
    core.winograd_workspace_bytes.restype = ctypes.c_int64
    found = tuple(name for name in IMPLEMENTATIONS if core.winograd_cpu_force(name.encode()) == 0)
    core.winograd_cpu_force(None)
    return replace(loaded, core=core, operators=operators, variants=found)


def _load_cuda(folder: Path, loaded: _Library, architectures: tuple[str, ...]) -> _Library:
    from winograd import cuda  # here, because it needs the operators' definitions, which need no library

    try:
        stages = cuda.Stages.load(folder / "libwinograd_cuda.so")
    except (OSError, AttributeError) as error:  # the latter where it is older than these files
        return replace(loaded, without_cuda=_not_loaded(error))
    for name, function in cuda.operators(stages).items():
        torch.library.impl(f"winograd::{name}", "cuda", _unless_forced(name, function))
    return replace(loaded, cuda=architectures)


def _unless_forced(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*given: object) -> Tensor:
        chosen = getattr(torch.ops.winograd, f"reference_{name}") if _forced == REFERENCE else function
        output: Tensor = chosen(*given)
        return output

    return run


def _not_loaded(error: Exception) -> str:
    log.warning("Plain torch computes, because the compiled library can't be loaded; install winograd again. %s", error)
    return f"the compiled library can't be loaded: {error}"


def _use(name: str | None) -> None:
    """Keep to one implementation from now on; None: to the best."""
    global _forced
    here = _library()
    if name is not None and name not in (*here.variants, REFERENCE):
        why = here.without_cpu or "this processor lacks others, or the name is not known"
        raise ImplementationUnavailable(name, (*here.variants, REFERENCE), why)
    if here.core is not None and here.operators is not None:
        here.core.winograd_cpu_force(None if name in (None, REFERENCE) else name.encode())
        here.operators.winograd_torch_force_reference(int(name == REFERENCE))
    _forced = name
