"""`RecordedNetwork`: a network on a CUDA device, whose kernels are recorded once and then started together (CUDA graphs).

Python takes 60 us and more to start the kernels of one layer, which is longer than many layers run. A recording holds
them all, with their operands, for inputs of one shape; to play it again takes one call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from winograd.operations import count_executed, count_operations

KEPT_RECORDINGS = 8  # of different inputs; each keeps the memory of its inputs and outputs
RUNS_BEFORE = 2  # libraries choose algorithms and allocate in their first runs, which a recording must not see


@dataclass(frozen=True)
class Recording:
    """A network's kernels for certain inputs, what it reads and writes, and the Winograd multiplications in it."""

    graph: Any  # torch.cuda.CUDAGraph
    inputs: Sequence[Tensor]
    outputs: Any  # as the network returns them
    gemms: int
    multiplications: int

    def play(self, inputs: Sequence[Tensor]) -> Any:
        """Run the network on other numbers; what it returns is the caller's own."""
        for recorded, given in zip(self.inputs, inputs, strict=True):
            recorded.copy_(given)
        self.graph.replay()
        count_executed(gemms=self.gemms, multiplications=self.multiplications)
        return tree_map_only(Tensor, torch.clone, self.outputs)


class _Recordings:
    """What a network has recorded. Copies of a network, and files, begin without: recordings belong to weights in their place."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.of: OrderedDict[tuple[object, ...], Recording] = OrderedDict()
        self.memory: Any = None  # of a device; all recordings take turns in it
        self.last_played: Any = None  # torch.cuda.Event

    def __reduce__(self) -> tuple[type[_Recordings], tuple[()]]:
        return _Recordings, ()


class RecordedNetwork(nn.Module):
    """Calls a network for inference whose inputs are tensors on one CUDA device; records it for each new kind of input.

    Kinds differ in shape, strides, type, and torch's settings for TF32. The eight that were used last are kept. Calls may come from
    several threads and streams; they run one after the other. Weights that change in place are seen; where they move, all is
    recorded anew. Named inputs, autocast and a recording around this one run operator by operator; and so does, for good, a
    network that can't be recorded, as one that looks at numbers on the host: `why_not` says why.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.why_not = ""
        self._recordings = _Recordings()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the network returns."""
        if self.why_not or named or not _can_be_recorded(inputs):
            return self.network(*inputs, **named)
        known = self._recordings
        with known.lock, torch.cuda.device(inputs[0].device):
            recording = self._recording_of(inputs)
            if recording is None:
                return self.network(*inputs)
            stream = torch.cuda.current_stream()
            stream.wait_event(known.last_played)
            outputs = recording.play(inputs)
            known.last_played.record(stream)
            return outputs

    def _recording_of(self, inputs: Sequence[Tensor]) -> Recording | None:
        matmul, cudnn, known = torch.backends.cuda.matmul, torch.backends.cudnn, self._recordings.of
        kinds = tuple((x.shape, x.stride(), x.dtype, x.device) for x in inputs)
        key = (kinds, matmul.fp32_precision, cudnn.allow_tf32)
        if key not in known:
            recording = self._record(inputs)
            if recording is None:
                return None
            known[key] = recording
            if len(known) > KEPT_RECORDINGS:
                known.popitem(last=False)
        known.move_to_end(key)
        return known[key]

    def _record(self, inputs: Sequence[Tensor]) -> Recording | None:
        known = self._recordings
        if known.memory is None:
            known.memory = torch.cuda.graph_pool_handle()
            known.last_played = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
        with torch.inference_mode(False):  # so that they can be written whatever mode is on later
            mine = [torch.empty_like(x).copy_(x) for x in inputs]
        self._run_aside(mine)
        graph = torch.cuda.CUDAGraph()
        try:
            # Back to the stream that is current now, also where a recording fails.
            with (
                count_operations() as counted,
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, known.memory, capture_error_mode="thread_local"),
            ):
                outputs = self.network(*mine)
        except RuntimeError as refused:
            self.why_not = f"it can't be recorded: {str(refused).strip().splitlines()[0]}"
            return None
        return Recording(graph, mine, outputs, counted.gemms, counted.multiplications)

    def _run_aside(self, inputs: Sequence[Tensor]) -> None:
        """Run the network as it must be run before a recording: on another stream. Raises what the network does."""
        current = torch.cuda.current_stream()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(RUNS_BEFORE):
                self.network(*inputs)
        current.wait_stream(aside)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RecordedNetwork:
        self._recordings = _Recordings()
        moved: RecordedNetwork = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        return moved

    def extra_repr(self) -> str:
        """Show what has been recorded."""
        return self.why_not or f"recorded for {len(self._recordings.of)} kinds of input"


def _can_be_recorded(inputs: Sequence[object]) -> bool:
    """Whether this call can: not while torch compiles, records or casts by itself."""
    if not inputs or torch.compiler.is_compiling() or not all(isinstance(x, Tensor) and x.is_cuda for x in inputs):
        return False
    return not torch.is_autocast_enabled("cuda") and not torch.cuda.is_current_stream_capturing()
