"""Which sizes of the inputs may vary: the file's own word for it, and what can be proven beyond.

Most exporters fix the batch at the size of their example. A network that treats every image alike takes any batch, so we first
try to build it with the batch left open, prove on numbers that images don't mix, and keep the file's batch only if that fails.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from jobs.errors import ModelRefused
from workers.models.graph import BATCH, DEFAULT_SIZE, ModelGraph, TensorSpec
from workers.models.graph_builder import DoesNotFit, GraphBuilder, Value
from workers.models.shapes import infer_shapes

# Tried in turn for sizes that a file leaves open, other than the batch, if the network can't run with `DEFAULT_SIZE`.
OTHER_SIZES = (32, 28, 64, 96, 128, 160, 256, 299, 320, 384, 416, 512, 640)
MAX_PROOF_ELEMENTS = 2**26  # of the largest tensor in the run that proves that images don't mix
PROOF_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float32: 1e-4, torch.float64: 1e-8}


@dataclass(frozen=True)
class Varying:
    """A size that the file leaves open: `multiple` times the number called `name`."""

    name: str
    multiple: int = 1


@dataclass(frozen=True)
class DeclaredInput:
    name: str
    dtype: torch.dtype
    shape: tuple[int | Varying, ...]


AddNodes = Callable[[GraphBuilder, list[fx.Node]], list[tuple[str, Value]]]
Symbols = dict[str, tuple[int, int]]  # the value of each open size in the two probes


def build_with_batch(inputs: Sequence[DeclaredInput], add_nodes: AddNodes) -> ModelGraph:
    """The graph that `add_nodes` builds on `inputs`, for any batch if that is possible."""
    if not inputs or not inputs[0].shape:
        raise ModelRefused("the network takes no batch of images")
    first_refusal: ModelRefused | None = None
    for attempt in (_as_declared, _with_free_batch, _with_fixed_batch, _with_fixed_image_size):
        try:
            return attempt(inputs, add_nodes)
        except ModelRefused as refusal:
            first_refusal = first_refusal or refusal
    assert first_refusal is not None
    raise first_refusal


def _as_declared(inputs: Sequence[DeclaredInput], add_nodes: AddNodes) -> ModelGraph:
    leading = inputs[0].shape[0]
    if not isinstance(leading, Varying):
        return _with_free_batch(inputs, add_nodes)
    renamed = [replace(given, shape=tuple(_renamed(size, leading.name) for size in given.shape)) for given in inputs]
    return _build(GraphBuilder(), renamed, add_nodes, _symbols(renamed))


def _renamed(size: int | Varying, batch: str) -> int | Varying:
    """The batch is called so, whatever symbol stands for it in the file."""
    return replace(size, name=BATCH) if isinstance(size, Varying) and size.name == batch else size


def _with_free_batch(inputs: Sequence[DeclaredInput], add_nodes: AddNodes) -> ModelGraph:
    batch = _fixed_batch(inputs)
    opened = [
        replace(given, shape=(Varying(BATCH), *given.shape[1:])) if _leads_with_batch(given, inputs) else given
        for given in inputs
    ]
    symbols = {**_symbols(opened), BATCH: (batch, 3 * batch)}
    builder = GraphBuilder(batch_is_free=True)
    graph = _build(builder, opened, add_nodes, symbols)
    if builder.largest_elements > MAX_PROOF_ELEMENTS:
        raise ModelRefused("the network is too large to prove that it takes any batch")
    _prove_images_do_not_mix(graph, batch)
    return graph


def _with_fixed_batch(inputs: Sequence[DeclaredInput], add_nodes: AddNodes) -> ModelGraph:
    batch = _fixed_batch(inputs)
    closed = [
        replace(given, shape=(batch, *given.shape[1:])) if _leads_with_batch(given, inputs) else given
        for given in inputs
    ]
    graph = _build(GraphBuilder(), closed, add_nodes, _symbols(closed))
    graph.batch_size = batch
    graph.warnings += (f"the network takes exactly {batch} image{'s' if batch > 1 else ''} at a time",)
    return graph


def _with_fixed_image_size(inputs: Sequence[DeclaredInput], add_nodes: AddNodes) -> ModelGraph:
    """Some files leave sizes open although only one fits, for instance before a linear layer."""
    names = {size.name for given in inputs for size in given.shape[1:] if isinstance(size, Varying)}
    if not names:
        raise ModelRefused("there is no other size to try")
    for size in OTHER_SIZES:
        sized = [replace(given, shape=(given.shape[0], *_fixed(given.shape[1:], size))) for given in inputs]
        try:
            graph = _as_declared(sized, add_nodes)
        except DoesNotFit:
            continue
        graph.warnings += (
            f"the file leaves {', '.join(sorted(names))} open; the network was found to run with {size}",
        )
        return graph
    raise ModelRefused("no size for the open dimensions fits")


def _fixed(shape: tuple[int | Varying, ...], size: int) -> tuple[int, ...]:
    return tuple(
        given.multiple * max(1, size // given.multiple) if isinstance(given, Varying) else given for given in shape
    )


def _fixed_batch(inputs: Sequence[DeclaredInput]) -> int:
    batch = inputs[0].shape[0]
    return 1 if isinstance(batch, Varying) else batch


def _leads_with_batch(given: DeclaredInput, inputs: Sequence[DeclaredInput]) -> bool:
    return bool(given.shape) and given.shape[0] == inputs[0].shape[0]


def _symbols(inputs: Sequence[DeclaredInput]) -> Symbols:
    """Two values for each open size: 2 and 3 for the batch (1 would hide what removes single dimensions), others near 224."""
    names = dict.fromkeys(size.name for given in inputs for size in given.shape if isinstance(size, Varying))
    leading = inputs[0].shape[0]
    batch = leading.name if isinstance(leading, Varying) else None
    symbols: Symbols = {}
    for name in names:
        # Multiples of 32, as most networks halve their input a few times; all different, so that they can be told apart.
        symbols[name] = (2, 3) if name == batch else (DEFAULT_SIZE, 2 * DEFAULT_SIZE + 32 * len(symbols))
    return symbols


def _build(builder: GraphBuilder, inputs: Sequence[DeclaredInput], add_nodes: AddNodes, symbols: Symbols) -> ModelGraph:
    nodes = [
        builder.add_input(
            TensorSpec(given.name, given.dtype, tuple(_label(size) for size in given.shape)),
            (_probe(given, symbols, 0), _probe(given, symbols, 1)),
        )
        for given in inputs
    ]
    outputs = add_nodes(builder, nodes)
    if builder.batch_is_free:
        for name, value in outputs:
            probes = builder.probes(value)
            if tuple(probe.shape[:1] for probe in probes) != tuple(
                probe.shape[:1] for probe in builder.probes(nodes[0])
            ):
                raise ModelRefused(f"the output {name} doesn't hold one entry for each image")
    graph = builder.finish(outputs, symbols)
    _check_one_image(graph)
    return graph


def _check_one_image(graph: ModelGraph) -> None:
    """A network that takes any batch takes one image too."""
    try:
        infer_shapes(graph)
    except (RuntimeError, ValueError, IndexError) as error:
        raise DoesNotFit(f"the network can't run on one image: {str(error).splitlines()[0][:300]}") from error


def _label(size: int | Varying) -> int | str:
    if isinstance(size, int):
        return size
    return size.name if size.multiple == 1 else f"{size.multiple}*{size.name}"


def _probe(given: DeclaredInput, symbols: Symbols, index: int) -> tuple[int, ...]:
    return tuple(
        size.multiple * max(1, symbols[size.name][index] // size.multiple) if isinstance(size, Varying) else size
        for size in given.shape
    )


def _prove_images_do_not_mix(graph: ModelGraph, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [_random_pair(spec, batch, generator) for spec in graph.inputs]
    try:
        with torch.no_grad():
            together = graph(*[torch.cat(pair) for pair in pairs])
            alone = graph(*[one for one, _ in pairs])
    except RuntimeError as error:
        raise ModelRefused(f"the network can't run: {str(error).splitlines()[0][:300]}") from error
    for both, one in zip(together, alone, strict=True):
        if not _close(both[:batch], one):
            raise ModelRefused("images of a batch influence each other")


def _random_pair(spec: TensorSpec, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    sizes = [DEFAULT_SIZE if isinstance(size, str) else size for size in spec.shape]
    shape = (batch, *sizes[1:]) if spec.shape[0] == BATCH else tuple(sizes)
    one, other = (torch.rand(shape, generator=generator).to(spec.dtype) for _ in range(2))
    return (one, other)


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
    return torch.allclose(one, other, rtol=0, atol=scale * PROOF_TOLERANCE[one.dtype], equal_nan=True)
