"""Integer networks of a few operations with seeded weights, float networks that lend their surface to them, and their files."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from tests.workers.networks import graph_of
from workers.fixed_point.coding import Coding, highest, lowest
from workers.fixed_point.network import Addition, Convolution, IntegerNetwork, Operation, Reshape, Shape, Value
from workers.fixed_point.run import IntegerRunner
from workers.fixed_point.write_qdq import QdqReport, write_qdq
from workers.models.graph import ModelGraph

CLASSES = 5
LOGITS = "linear"  # the node of `surface` that the networks here compute
OPEN = 2**31 - 1


@dataclass
class Builder:
    """A network being written down: every method adds one operation and returns the name of what it makes."""

    generator: torch.Generator
    values: dict[str, Value] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)

    def input(self, shape: Shape, bits: int = 8, *, signed: bool = False, length: int = 0) -> str:
        return self._value("image", shape, bits, signed=signed, length=length)

    def convolution(
        self,
        source: str,
        filters: int,
        kernel: int = 3,
        *,
        bits: int = 8,
        signed: bool = False,
        weight_bits: int = 8,
        most_shifted: int = 0,
        out_shift: tuple[int, int] = (7, 10),
        bias: int = 500,
        **options: Any,
    ) -> str:
        """Random weights, shifts between planes, and requantizations that differ from filter to filter."""
        channels, height, width = self.values[source].shape
        group_channels = channels // options.get("groups", 1)
        end = (1 << (weight_bits - 1)) - 1
        output = self._value(f"c{len(self.operations)}", (filters, height, width), bits, signed=signed)
        self.operations.append(
            Convolution(
                layer=f"{output}.layer",
                source=source,
                output=output,
                weight=self.random(-end - 1, end, (filters, group_channels, kernel, kernel)),
                weight_bits=weight_bits,
                shifts=self.random(0, most_shifted, (filters, group_channels)),
                bias=self.random(-bias, bias, (filters,)),
                bias_bits=32,
                lengths=torch.zeros(filters, dtype=torch.int64),
                out_shift=self.random(*out_shift, (filters,)),
                low=torch.full((filters,), lowest(bits, signed=signed)),
                high=torch.full((filters,), highest(bits, signed=signed)),
                padding=(kernel // 2, kernel // 2),
                **options,
            )
        )
        return output

    def addition(
        self, first: str, second: str, left: Any, out_shift: Any, bits: int = 8, *, signed: bool = False
    ) -> str:
        """`left` and `out_shift` are for all channels, or one for each."""
        shape = self.values[first].shape
        output = self._value(f"s{len(self.operations)}", shape, bits, signed=signed)
        first_left, second_left, shift = (
            tuple(each) if isinstance(each, (tuple, list)) else (each,) * shape[0] for each in (*left, out_shift)
        )
        ends = (lowest(bits, signed=signed), highest(bits, signed=signed))
        low, high = ((end,) * shape[0] for end in ends)
        self.operations.append(Addition((first, second), output, (first_left, second_left), shift, low, high))
        return output

    def add(self, operation: Operation, shape: Shape, bits: int = 8, signed: bool = False) -> str:
        self._value(operation.output, shape, bits, signed=signed)
        self.operations.append(operation)
        return operation.output

    def network(self, source: str, weight_bits: int = 8, length: int = 6) -> IntegerNetwork:
        """The network with a linear layer for its logits."""
        channels, height, width = self.values[source].shape
        count = channels * height * width
        flat = self._value("flat", (count, 1, 1), self.values[source].coding.bits, signed=self._is_signed(source))
        self.operations.append(Reshape(source, flat))
        logits = self._value("logits", (CLASSES, 1, 1), 32, signed=True, length=length)
        end = (1 << (weight_bits - 1)) - 1
        self.operations.append(
            Convolution(
                layer="fc", source=flat, output=logits, weight=self.random(-end - 1, end, (CLASSES, count, 1, 1)),
                weight_bits=weight_bits, shifts=torch.zeros(CLASSES, count, dtype=torch.int64),
                bias=self.random(-500, 500, (CLASSES,)), bias_bits=32,
                lengths=torch.full((CLASSES,), length), out_shift=torch.zeros(CLASSES, dtype=torch.int64),
                low=torch.full((CLASSES,), -OPEN - 1), high=torch.full((CLASSES,), OPEN), is_linear=True,
            )
        )  # fmt: skip
        return IntegerNetwork("image", logits, dict(self.values), tuple(self.operations))

    def _value(self, name: str, shape: Shape, bits: int, *, signed: bool, length: int = 0) -> str:
        self.values[name] = Value(name, shape, Coding(bits, signed, (length,) * shape[0]))
        return name

    def _is_signed(self, name: str) -> bool:
        return self.values[name].coding.signed

    def random(self, first: int, last: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(first, last + 1, shape, generator=self.generator)


def builder(seed: int = 0) -> Builder:
    return Builder(torch.Generator().manual_seed(seed))


def surface(shape: Shape) -> ModelGraph:
    """A float network that takes images of this shape and gives probabilities; `LOGITS` are its linear layer's."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), CLASSES), nn.Softmax(1))
    return graph_of(network.eval(), torch.zeros(2, *shape))


def scores_surface(shape: Shape, outputs: int = CLASSES) -> ModelGraph:
    """The same, but what it gives are the logits."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), outputs))
    return graph_of(network.eval(), torch.zeros(2, *shape))


def images_of(network: IntegerNetwork, count: int = 16, seed: int = 1) -> Tensor:
    """Float images that reach beyond the range of the input, a quarter of them exactly between two integers."""
    value = network.values[network.input]
    generator = torch.Generator().manual_seed(seed)
    spread = value.coding.highest - value.coding.lowest
    numbers = torch.rand(count, *value.shape, generator=generator) * 1.1 * spread + value.coding.lowest - 0.05 * spread
    numbers[::4] = numbers[::4].floor() + 0.5
    return (numbers * 2.0 ** -value.coding.lengths[0]).float()


def assert_same(
    folder: Path,
    network: IntegerNetwork,
    images: Tensor | None = None,
    *,
    pack_int4: bool = False,
    overflows: bool = False,
) -> QdqReport:
    """What the file gives is what the reference runner gives, to the last bit."""
    shape, count = network.values[network.input].shape, torch.Size(network.values[network.output].shape).numel()
    report = write_qdq(network, scores_surface(shape, count), folder / "n.onnx", pack_int4=pack_int4)
    images = images_of(network) if images is None else images
    runner = IntegerRunner(network)
    given = runner.run_all(runner.quantize_input(images), keep=())[network.output]
    wanted = runner.scores(given).flatten(1)
    assert (runner.executed.overflows > 0) == overflows
    assert float(wanted.std()) > 0
    assert torch.equal(run(folder / "n.onnx", images), wanted.float())
    return report


def run(path: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def optimised(path: Path) -> Counter[str]:
    """The operators that ONNX Runtime makes of the file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimised"))
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path.with_suffix(".optimised")).graph.node)
