"""A graph with Winograd convolutions, changed so that images stay in channels_last from convolution to convolution.

That is the order in which they are computed: an image with its channels first is transposed into it, and the output back, in
every call, which takes half of the time of a small convolution. Direct convolutions of torch were also faster in it, with
their filters in the same order.
"""

import torch
from torch import Tensor, fx

from winograd.fuse_epilogues import CONV2D, may_write

aten = torch.ops.aten
DIRECT = aten.conv2d.default
CONVOLUTIONS = (CONV2D, DIRECT)
# Their output has the order of their inputs. Whatever is missing here costs a look at the order, no more.
KEEPERS = (
    aten.relu.default, aten.relu_.default, aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.clamp.default,
    aten.batch_norm.default, aten.max_pool2d.default, aten.avg_pool2d.default,
)  # fmt: skip
VIEWS = (aten.view.default, aten._unsafe_view.default)  # refuse an order in which the numbers don't lie in a row
ORDERED = (aten.as_strided.default, aten.as_strided_.default, aten.view_as.default)  # count on one order


def keep_channels_last(graph: fx.Graph) -> list[fx.Node]:
    """Change the order before convolutions where it isn't that one yet; return the nodes of direct filters that should lie so.

    Outputs of the graph lie as they did. Graphs that count on the order of a tensor in memory, and those without Winograd
    convolutions, are left as they are.
    """
    nodes = list(graph.nodes)
    if all(node.target is not CONV2D for node in nodes) or _counts_on_order(nodes):
        return []
    for node in nodes:
        if node.target in VIEWS:
            node.target = aten.reshape.default
    images, filters = set[fx.Node](), list[fx.Node]()
    for node in nodes:
        if not _is_image(node):
            continue
        if node.target in CONVOLUTIONS:
            image, weights = node.args[:2]
            assert isinstance(image, fx.Node)
            assert isinstance(weights, fx.Node)
            if image not in images:
                with graph.inserting_before(node):
                    node.update_arg(0, _in_order(image, torch.channels_last))
            if node.target is DIRECT:
                filters.append(weights)
            images.add(node)
        elif node.target in KEEPERS and images.issuperset(one for one in node.all_input_nodes if _is_image(one)):
            images.add(node)
    _restore_outputs(graph)
    return filters


def _counts_on_order(nodes: list[fx.Node]) -> bool:
    targets = {node.target for node in nodes}
    if not targets.isdisjoint(ORDERED):
        return True
    # What is written into a view must arrive in the tensor that was viewed; a reshape may have copied it.
    return not targets.isdisjoint(VIEWS) and any(may_write(node) for node in nodes)


def _restore_outputs(graph: fx.Graph) -> None:
    output = graph.output_node()
    with graph.inserting_before(output):
        for node in output.all_input_nodes:
            if _is_image(node):
                output.replace_input_with(node, _in_order(node, torch.contiguous_format))


def _is_image(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() == 4


def _in_order(node: fx.Node, order: torch.memory_format) -> fx.Node:
    ordered = node.graph.call_function(aten.contiguous.default, (node,), {"memory_format": order})
    ordered.meta = dict(node.meta)
    return ordered
