"""A graph that computes a whole float32 network on the CPU, changed into one call of compiled code."""

from collections.abc import MutableMapping
from typing import Any

from torch import fx
from torch.utils._pytree import tree_structure

from winograd import library
from winograd.fuse_epilogues import CONV2D
from winograd.prepared_float_network import PreparedFloatNetwork
from winograd.write_float_program import NoFloatProgram, write_float_program

NAME = "whole_network"


def put_into_one_call(graph: fx.Graph, held: MutableMapping[str, Any]) -> str:
    """Let the graph call one module, which is then among `held`; return why not, in words, where it stays as it is."""
    if library.implementation() == library.REFERENCE:
        return f"plain torch computes: {library.info().why}"
    if all(node.target is not CONV2D for node in graph.nodes):
        return "it has no Winograd convolutions"
    try:
        program, shape = write_float_program(graph, held)
        held[NAME] = PreparedFloatNetwork(program.to_tensor(), shape)
    except (NoFloatProgram, RuntimeError) as refused:  # the latter is the word of compiled code
        return str(refused)
    _leave_call(graph)
    return ""


def _leave_call(graph: fx.Graph) -> None:
    """Replace what the graph computes, and torch's checks of inputs that compiled code checks anyhow."""
    [image] = graph.find_nodes(op="placeholder")
    output = graph.output_node()
    with graph.inserting_before(output):
        called = graph.call_module(NAME, (image,))
    [computed] = output.all_input_nodes
    called.meta = dict(computed.meta)
    output.replace_input_with(computed, called)
    for node in reversed(list(graph.nodes)):
        if node not in (image, called, output):
            graph.erase_node(node)
    if _takes_and_gives_a_tensor(graph):
        # Taking apart a structure that is no more than a tensor takes 15 us, as long as three layers.
        graph.set_codegen(fx.graph.CodeGen())
        output.args = (called,)


def _takes_and_gives_a_tensor(graph: fx.Graph) -> bool:
    codegen = graph._codegen
    if not isinstance(codegen, fx.graph._PyTreeCodeGen):
        return False
    info = codegen.pytree_info
    return info.in_spec == tree_structure(((0,), {})) and info.out_spec == tree_structure(0)
