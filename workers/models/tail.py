"""Where a classifier's scores are, and what comes after them: a change of shape, or probabilities (the tail)."""

from torch import fx

from workers.models.graph import ModelGraph, aten, copy_graph

_TAIL = frozenset({aten.softmax.int, aten.log_softmax.int, aten.reshape.default, aten.sigmoid.default})


def logits_of(graph: ModelGraph) -> fx.Node:
    """The node that the first output is made of by the tail; the output itself where there is none."""
    node = graph.module.graph.output_node().all_input_nodes[0]
    while node.target in _TAIL and len(node.all_input_nodes[0].users) == 1:
        node = node.all_input_nodes[0]
    return node


def without_tail(graph: ModelGraph) -> ModelGraph:
    """A copy that gives the logits themselves."""
    cut = copy_graph(graph)
    cut.module.graph.output_node().args = ((logits_of(cut),),)
    cut.module.recompile()
    return cut
