"""Parts of a network run alone give what the whole network gives."""

import torch

from workers.compression.program import compile_graph, multiply_adds
from workers.models.graph import ModelGraph, layers, parameter


def test_a_program_gives_what_its_graph_gives(small_network: ModelGraph) -> None:
    image = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    program = compile_graph(small_network.module)
    values = {number: parameter(small_network, name) for number, name in program.parameters.items()}
    values[program.inputs[0]] = image
    program.plan(frozenset(program.outputs), frozenset(program.inputs)).run(values)
    assert torch.equal(values[program.outputs[0]], small_network(image)[0])


def test_a_plan_drops_what_nobody_reads_again(small_network: ModelGraph) -> None:
    program = compile_graph(small_network.module)
    values = {number: parameter(small_network, name) for number, name in program.parameters.items()}
    values[program.inputs[0]] = torch.zeros(1, 1, 8, 8)
    program.plan(frozenset(program.outputs), frozenset(program.inputs)).run(values)
    assert values.keys() == {*program.parameters, *program.outputs}


def test_the_frontier_of_a_layer_is_what_its_suffix_reads(small_network: ModelGraph) -> None:
    program = compile_graph(small_network.module)
    output = frozenset(program.outputs)
    by_name = {layer.name: program.numbers_of(layer.weight) for layer in layers(small_network)}
    # conv1 starts from the image, conv2 from the activation that is its input and its shortcut, fc from the features.
    assert program.frontier(by_name["conv1"], output) == frozenset(program.inputs)
    sizes = {name: len(program.frontier(numbers, output)) for name, numbers in by_name.items()}
    assert sizes == {"conv1": 1, "conv2": 1, "fc": 1}
    fc = program.plan(output, program.frontier(by_name["fc"], output))
    assert len(fc.operations) == 1


def test_multiply_adds_are_those_of_the_layers(small_network: ModelGraph) -> None:
    program = compile_graph(small_network.module)
    values = {number: parameter(small_network, name) for number, name in program.parameters.items()}
    values[program.inputs[0]] = torch.zeros(2, 1, 8, 8)
    total = 0
    for operation in program.operations:
        values[operation.number] = operation.run(values)
        total += multiply_adds(operation, values)
    assert total == 2 * (64 * 8 * 9 + 64 * 8 * 8 * 9 + 128 * 10)
