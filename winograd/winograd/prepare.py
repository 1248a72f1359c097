"""Networks with Winograd convolutions, prepared to be run fast: `load` for files, `prepare` for what torch.export gives.

    model = winograd.load("model.pt2")
    with torch.inference_mode():
        scores = model(images)

`winograd::conv2d`, as it stands in a file, packs its weights anew in every call. Here they are packed once, additions and ReLUs
happen where convolutions write their outputs, and images stay in channels_last between them. The program of a
`winograd::integer_network` is packed once too. Where a whole network is float32, on the CPU and made of common operators, all of
it becomes one call of compiled code; where it is on a CUDA device, its kernels are recorded, and started in one call.
"""

import os
from operator import attrgetter
from typing import IO, Any

import torch
from torch import Tensor, fx, nn
from torch.export.passes import move_to_device_pass

from winograd import ops
from winograd.fuse_epilogues import CONV2D, Conv2dCall, fuse_epilogues, may_write
from winograd.keep_channels_last import keep_channels_last
from winograd.packed_conv2d import PackedConv2d
from winograd.prepared_integer_network import PreparedIntegerNetwork
from winograd.recorded_network import RecordedNetwork
from winograd.whole_network import put_into_one_call

INTEGER_NETWORK = torch.ops.winograd.integer_network.default

Held = dict[str, Any]  # what the graph reads and calls, by name: tensors, modules, whatever torch.export puts there


def load(
    file: str | os.PathLike[str] | IO[bytes], *, device: str | torch.device | None = None, in_one_call: bool = True
) -> "PreparedNetwork":
    """Return the network in a .pt2 file, prepared to be run fast on a device, or on that for which the file was written.

    in_one_call: as for `prepare`.

    **Load only files that you trust**, such as those that you downloaded from your own Winnow service: torch.export.load, which
    opens the file, unpickles what it finds pickled in it, and so can be made to run any code. Raises what it raises.
    """
    program = torch.export.load(file)
    if device is not None:
        program = move_to_device_pass(program, torch.device(device))
    return prepare(program.module(), in_one_call=in_one_call)


def prepare(network: nn.Module, *, in_one_call: bool = True) -> "PreparedNetwork":
    """Return a copy of a network from torch.export for inference, in which Winograd convolutions run as fast as they can.

    `network` is a graph of ATen operators, `winograd::conv2d` and `winograd::integer_network`, such as
    torch.export.load(path).module(); it stays as it is, and shares with the copy what both need. The copy gives the same
    numbers, up to the rounding of sums. It is for the device that the weights are on, and for the implementation that runs now
    (see `winograd.info`). A network that can be computed in one call is, unless in_one_call is False, which is there to compare
    with. Raises TypeError for anything that is no graph.
    """
    if not isinstance(network, fx.GraphModule):
        raise TypeError(
            f"{type(network).__name__} is no graph; pass what torch.export gives, such as torch.export.load(path).module(), or "
            "call winograd.replace_convolutions for a model in Python."
        )
    graph = _copy_of(network.graph)
    _remove_dead_code(graph)
    fuse_epilogues(graph)
    held: Held = {name: attrgetter(name)(network) for name in _names(graph)}
    why_not = put_into_one_call(graph, held) if in_one_call else "in_one_call is False"
    if why_not:
        _prepare_calls(graph, held)
    _add_checks(graph)
    whole: nn.Module = fx.GraphModule({name: _frozen(held[name]) for name in _names(graph)}, graph, "Network")
    if in_one_call and _is_on_cuda(held):
        return PreparedNetwork(RecordedNetwork(whole), why_not_in_one_call="")
    return PreparedNetwork(whole, why_not_in_one_call=why_not)


class PreparedNetwork(nn.Module):
    """A network for inference, called as the one that it was prepared from; gradients don't flow through it.

    `in_one_call` says whether all of it is computed in one call; if not, `why_not_in_one_call` says why, in words. On a CUDA device
    the first call for each shape of inputs records it, and takes longer; whether it can be recorded is known after the first.
    """

    def __init__(self, network: nn.Module, *, why_not_in_one_call: str) -> None:
        super().__init__()
        self.network = network
        self._why_not_in_one_call = why_not_in_one_call

    @property
    def in_one_call(self) -> bool:
        """Whether the whole network is computed in one call, without Python between its layers."""
        return not self.why_not_in_one_call

    @property
    def why_not_in_one_call(self) -> str:
        """Why it runs operator by operator; empty where it doesn't."""
        return self.network.why_not if isinstance(self.network, RecordedNetwork) else self._why_not_in_one_call

    def forward(self, *inputs: Any, **named: Any) -> Any:  # whatever the network takes and returns
        """Run the network. Raises ValueError for an input of another size than it was exported for."""
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            return self.network(*inputs, **named)
        # Once for all operators, each of which would go a slow way through autograd to learn that it has no gradients.
        with torch._C._AutoDispatchBelowAutograd():
            return self.network(*inputs, **named)

    def train(self, mode: bool = True) -> "PreparedNetwork":
        """Do nothing for `eval()`. Raises NotImplementedError for training: train the network that this was prepared from."""
        if mode:
            raise NotImplementedError(
                "The network was prepared for inference; train the one that it was prepared from."
            )
        return self

    def extra_repr(self) -> str:
        """Show how it is computed."""
        return "in one call" if self.in_one_call else f"operator by operator: {self.why_not_in_one_call}"


def check_sizes(x: Tensor, name: str, dimensions: int, fixed: tuple[tuple[int, int], ...]) -> None:
    """Check an input against the sizes [(dimension, size)] that it was exported with; the others may be anything.

    Where a network counts on them, results would be wrong. torch's own checks take 40 us and don't survive a copy.
    """
    shape = x.shape
    if len(shape) != dimensions or any(shape[place] != size for place, size in fixed):
        sizes = dict(fixed)
        wanted = ", ".join(str(sizes.get(place, "any")) for place in range(dimensions))
        raise ValueError(f"{name} has shape {list(shape)}, but the network was exported for [{wanted}].")


# ---- The graph ------------------------------------------------------------------------------------------------------------


def _copy_of(graph: fx.Graph) -> fx.Graph:
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    copied.set_codegen(graph._codegen)  # which knows how inputs and outputs are nested
    return copied


def _remove_dead_code(graph: fx.Graph) -> None:
    # torch takes modules for pure, also those that check inputs.
    graph.eliminate_dead_code(lambda node: node.op == "call_module" or node.is_impure())


def _names(graph: fx.Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")}


def _add_checks(graph: fx.Graph) -> None:
    placeholders = graph.find_nodes(op="placeholder")
    for node in placeholders:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            fixed = tuple((place, size) for place, size in enumerate(value.shape) if isinstance(size, int))
            with graph.inserting_after(placeholders[-1]):
                graph.call_function(check_sizes, (node, str(node.target), value.dim(), fixed))


def _is_on_cuda(held: Held) -> bool:
    """Whether all tensors that the network reads are on CUDA devices, and there are some."""
    tensors = [x for value in held.values() for x in _tensors_of(value)]
    return bool(tensors) and all(x.is_cuda for x in tensors)


def _tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [*value.parameters(), *value.buffers()] if isinstance(value, nn.Module) else []


# ---- What it holds --------------------------------------------------------------------------------------------------------


def _prepare_calls(graph: fx.Graph, held: Held) -> None:
    """Let the graph run operator by operator, as fast as that can be."""
    for node in keep_channels_last(graph):
        if node.op == "get_attr":
            held[str(node.target)] = _in_channels_last(held[str(node.target)])
    _pack(graph, held)
    _remove_dead_code(graph)


def _pack(graph: fx.Graph, held: Held) -> None:
    """Replace calls on weights and programs that never change by modules that hold them packed, each once."""
    written = {
        str(read.target)
        for node in graph.nodes
        if may_write(node)
        for read in node.all_input_nodes
        if read.op == "get_attr"
    }
    _pack_convolutions(graph, held, written)
    _pack_integer_networks(graph, held, written)


def _pack_convolutions(graph: fx.Graph, held: Held, written: set[str]) -> None:
    packed: dict[tuple[object, ...], ops.Packed] = {}
    for node in list(graph.nodes):
        if node.target is not CONV2D:
            continue
        call = Conv2dCall.of(node)
        weights, bias = _constant(call.weights, held, written), _constant(call.bias, held, written)
        if weights is None or (bias is None and call.bias is not None) or not all(type(n) is int for n in call.padding):
            continue
        key = id(weights), call.positions, call.m, call.groups
        if key not in packed:
            packed[key] = ops.pack_weights(weights.detach(), call.positions, call.m, groups=call.groups)
        name = _free_name(str(call.weights.target), held)
        held[name] = PackedConv2d(packed[key], bias, padding=call.padding, activation=call.activation)
        with graph.inserting_before(node):
            convolved = graph.call_module(name, (call.input,) if call.residual is None else (call.input, call.residual))
        _replace(node, convolved)


def _pack_integer_networks(graph: fx.Graph, held: Held, written: set[str]) -> None:
    names: dict[tuple[int, int], str] = {}
    for node in graph.find_nodes(op="call_function", target=INTEGER_NETWORK):
        given = dict(zip(("input", "program", "outputs"), node.args, strict=False)) | node.kwargs
        read = given["program"]
        assert isinstance(read, fx.Node)
        program = _constant(read, held, written)
        if program is None:
            continue
        key = id(program), given["outputs"]
        if key not in names:
            names[key] = _free_name(str(read.target), held)
            held[names[key]] = PreparedIntegerNetwork(program, given["outputs"])
        with graph.inserting_before(node):
            called = graph.call_module(names[key], (given["input"],))
        _replace(node, called)


def _replace(node: fx.Node, other: fx.Node) -> None:
    other.meta = dict(node.meta)
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def _constant(node: fx.Node | None, held: Held, written: set[str]) -> Tensor | None:
    """The tensor that a node reads, if it is always the same."""
    if node is None or node.op != "get_attr" or node.target in written:
        return None
    value = held[str(node.target)]
    return value if isinstance(value, Tensor) else None


def _free_name(weights: str, held: Held) -> str:
    """A name for what reads them, on the top level, where torch finds it fastest: layer1_0_conv1 for layer1.0.conv1.weight."""
    name = wanted = weights.rpartition(".")[0].replace(".", "_") or weights
    count = 0
    while any(taken == name or taken.startswith(f"{name}.") for taken in held):
        count += 1
        name = f"{wanted}_{count}"
    return name


def _in_channels_last(filters: Tensor) -> Tensor:
    return nn.Parameter(filters.detach().contiguous(memory_format=torch.channels_last), requires_grad=False)


def _frozen(value: Any) -> Any:  # one of Held
    if isinstance(value, Tensor) and value.requires_grad:
        return nn.Parameter(value.detach(), requires_grad=False)
    return value
