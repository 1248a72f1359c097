"""A network whose integers are one operator of the package `winograd`, with the surface of the float network around it.

images -> integer_network -> * 2**-length -> what the float network does after its logits
"""

import torch
from torch import Tensor, fx

import winograd  # noqa: F401  # brings torch.ops.winograd
from workers.fixed_point.network import IntegerNetwork
from workers.fixed_point.write_program import integer_program
from workers.models.graph import ModelGraph, aten, copy_graph, drop_unread_parameters
from workers.models.shapes import infer_shapes
from workers.models.tail import logits_of


def with_program(graph: ModelGraph, network: IntegerNetwork) -> ModelGraph:
    """A copy of `graph`, the simulation of `network`, that gives the same numbers by running its integers in one operator.

    Raises `RecipeRefused` where that operator can't do what the network does.
    """
    program = integer_program(network)
    changed = copy_graph(graph)
    logits = logits_of(changed)
    shape = infer_shapes(graph)[logits.name]
    adding = _Adding(changed, logits)
    outputs = program.values[program.output].size
    integers = adding.call(
        torch.ops.winograd.integer_network.default,
        adding.images(network),
        adding.program(program.to_tensor()),
        outputs,
    )
    scores = adding.call(aten.to.dtype, integers, torch.float32)
    scores = adding.call(aten.mul.Tensor, scores, 2.0 ** -network.values[network.output].coding.lengths[0])
    if shape[1:] != (outputs,):
        scores = adding.call(aten.reshape.default, scores, [-1, *shape[1:]])
    logits.replace_all_uses_with(scores)
    changed.module.graph.eliminate_dead_code()
    drop_unread_parameters(changed.module)
    changed.module.recompile()
    return changed


class _Adding:
    """Adds nodes before another."""

    def __init__(self, graph: ModelGraph, before: fx.Node) -> None:
        self._graph = graph
        self._before = before

    def images(self, network: IntegerNetwork) -> fx.Node:
        """The input [N, C, H, W]."""
        node: fx.Node = next(node for node in self._graph.module.graph.nodes if node.op == "placeholder")
        if len(self._graph.inputs[0].shape) == 4:
            return node
        return self.call(aten.reshape.default, node, [-1, *network.values[network.input].shape])

    def program(self, tensor: Tensor) -> fx.Node:
        """The program, under a name that the network doesn't use."""
        module, name = self._graph.module, "integers"
        while hasattr(module, name):
            name += "_"
        module.register_buffer(name, tensor)
        with module.graph.inserting_before(self._before):
            return module.graph.get_attr(name)

    def call(self, function: object, *arguments: object) -> fx.Node:
        with self._graph.module.graph.inserting_before(self._before):
            return self._graph.module.graph.call_function(function, arguments)  # type: ignore[arg-type]  # an operator
