"""Method Q as a step, claim element by claim element (docs/methods.md)."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from jobs.errors import RecipeRefused
from jobs.recipe import AssignPrecision, LayerChange, LearningCycles, LearningStatistics, QuantizeFixedPoint
from tests.workers.integer_networks import quantized
from tests.workers.networks import graph_of, small_cnn
from workers.compression.assign_precision import FIXED, PrecisionResult, Surroundings, assign_precision
from workers.compression.finetune import AfterStep, Stepped, TrainingImages, finetune
from workers.compression.precision_orders import LayerStatistics, Orders, aggregated, squared_step
from workers.compression.precision_search import PrefixSearch
from workers.compression.second_networks import SecondNetworks
from workers.compression.weight_differences import DifferenceRecorder
from workers.models.graph import ModelGraph, layers, parameter

QUANTIZATION = QuantizeFixedPoint(kind="quantize_fixed_point", calibration_images=40)
NAMES = ["conv1", "conv2", "fc"]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(80, 1, 8, 8, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def network(images: Tensor) -> ModelGraph:
    return graph_of(small_cnn(), images[:2])


def step(**options: Any) -> AssignPrecision:
    return AssignPrecision.model_validate({"kind": "assign_precision", **options})


def recorded(*cycles: Mapping[str, float], variance: float = 1.0, **more: Any) -> LearningStatistics:
    """Cycles in which both mean squares of each layer are the given number."""
    changes = tuple(
        {name: LayerChange(cycle_start=value, initial=value) for name, value in cycle.items()} for cycle in cycles
    )
    return LearningStatistics(cycles=changes, variances=dict.fromkeys(cycles[0], variance), **more)


def scripted(**values: float) -> LearningStatistics:
    return recorded(values)


def assigned(network: ModelGraph, images: Tensor, asked: AssignPrecision, **changes: Any) -> PrecisionResult:
    """Accuracy is the agreement with `network`; the network learns its own answers."""
    answers = network(images)[0].argmax(1)
    learning = TrainingImages(len(images), lambda wanted: images[wanted].numpy(), torch.from_numpy, answers.numpy())

    def calibration(_: ModelGraph, count: int) -> Iterator[Tensor]:
        yield from torch.split(images[:count], 16)

    def learn(graph: ModelGraph, after_step: AfterStep) -> ModelGraph:
        return finetune(
            graph, learning, asked.learning, seed=0, teacher=None, evaluate=None, on_progress=lambda *_: None,
            learns_statistics=False, after_step=after_step,
        ).graph  # fmt: skip

    def evaluate(graph: ModelGraph) -> float:
        return 100 * float((graph(images)[0].argmax(1) == answers).double().mean())

    values: dict[str, Any] = {
        "calibration": calibration,
        "evaluate": evaluate,
        "quantization": QUANTIZATION,
        "learn": learn,
        "seed": 0,
    }
    return assign_precision(network, asked, Surroundings(**(values | changes)), lambda *_: None)


def ten_points_a_layer(graph: ModelGraph) -> float:
    """An accuracy that falls by 10 points for each layer whose weights have 2 bits: zero or a power of two, whatever the scale."""
    mantissas = [torch.frexp(parameter(graph, layer.weight).detach())[0].abs() for layer in layers(graph)]
    return 90.0 - 10.0 * sum(set(mantissa.flatten().tolist()) <= {0.0, 0.5} for mantissa in mantissas)


# ---- Learning and its differences ------------------------------------------------------------------------------------


def test_q1_the_first_network_learns_in_cycles_and_logs_their_losses(network: ModelGraph, images: Tensor) -> None:
    asked = step(learning={"epochs": 3, "learning_rate": 0.01, "batch_size": 16, "augment": "none"}, keep="learned")
    result = assigned(network, images, asked)
    assert len(result.losses) == 3
    assert result.losses[2] < result.losses[0]
    assert result.keeps_learned
    for layer in layers(network):
        assert not torch.equal(parameter(result.graph, layer.weight), parameter(network, layer.weight))
    assert all(len(layer.mean_squares) == 2 for layer in result.layers)  # the first cycle only warms up


def test_q1_a_cycle_can_be_some_iterations(network: ModelGraph, images: Tensor) -> None:
    learning = {"epochs": 1, "iterations": 2, "warmup_cycles": 0, "batch_size": 16, "augment": "none"}
    result = assigned(network, images, step(learning=learning))
    assert len(result.losses) == 2  # five batches: two whole cycles
    with pytest.raises(RecipeRefused, match="2 whole cycles, but 4 are needed"):
        assigned(network, images, step(learning=learning | {"warmup_cycles": 3}))


def test_q1_the_rate_stays_while_differences_are_recorded() -> None:
    with pytest.raises(ValidationError, match="schedule"):
        step(learning={"schedule": "cosine"})
    with pytest.raises(ValidationError, match="some cycle has to count"):
        step(learning={"epochs": 1})


def test_q2_differences_are_exact_for_both_readings_of_the_initial_weight() -> None:
    weights = {"a": torch.zeros(4, 2, 3, 3), "b": torch.full((3, 2), 5.0)}
    recorder = DifferenceRecorder(weights, LearningCycles(warmup_cycles=0, epochs=2))
    for delta in (0.5, -0.25):
        moved = {name: weight + delta * (2 if name == "b" else 1) for name, weight in weights.items()}
        weights = moved
        recorder.after_step(Stepped(moved, loss=1.0, ends_epoch=True))
    first, second = recorder.statistics().cycles
    assert first["a"] == LayerChange(cycle_start=0.25, initial=0.25)
    assert second["a"] == LayerChange(cycle_start=0.0625, initial=0.0625)  # 0.5 - 0.25 from the beginning
    assert second["b"] == LayerChange(cycle_start=0.25, initial=0.25)
    assert recorder.statistics().variances == {"a": 0.0, "b": 0.0}


def test_q3_a_difference_of_a_tenth_everywhere_has_mean_square_of_a_hundredth() -> None:
    weights = {"conv": torch.randn(8, 4, 3, 3, dtype=torch.float64)}
    recorder = DifferenceRecorder(weights, LearningCycles(warmup_cycles=0))
    recorder.end_cycle({"conv": weights["conv"] + 0.1})
    (cycle,) = recorder.statistics().cycles
    assert cycle["conv"].cycle_start == pytest.approx(0.01, rel=1e-12)


def test_q3_cycles_become_one_number() -> None:
    squares = [4.0, 1.0, 3.0]
    found = {how: aggregated(squares, how) for how in ("mean", "sum", "max", "last", "ema")}
    assert found == {"mean": pytest.approx(8 / 3), "sum": 8.0, "max": 4.0, "last": 3.0, "ema": 2.75}


def test_q3_differences_are_recorded_on_float_weights_not_on_quantized_ones(
    network: ModelGraph, images: Tensor
) -> None:
    """The smallest step at 4 bits is far larger than what a few iterations move: on such a grid nothing would have moved."""
    learning = {"epochs": 2, "learning_rate": 1e-5, "batch_size": 16, "augment": "none"}
    result = assigned(network, images, step(learning=learning))
    for layer in result.layers:
        weight = next(parameter(network, each.weight) for each in layers(network) if each.name == layer.layer)
        assert 0 < layer.statistic < 1e-3 * squared_step(weight, 4)


# ---- Order -----------------------------------------------------------------------------------------------------------


def test_q4_layers_are_sorted_by_ascending_statistic(network: ModelGraph) -> None:
    statistics = LayerStatistics(network, scripted(conv1=3.0, conv2=1.0, fc=2.0), step())
    assert statistics.ascending() == ["conv2", "fc", "conv1"]


def test_q4_statistics_are_normalised_by_variance_or_quantization_step(network: ModelGraph) -> None:
    given = LearningStatistics(
        cycles=({name: LayerChange(cycle_start=1.0, initial=4.0) for name in NAMES},),
        variances={"conv1": 0.5, "conv2": 2.0, "fc": 1.0},
    )
    by_variance = LayerStatistics(network, given, step(normalise="var", reference="initial"))
    assert by_variance.sorted_by == {"conv1": 8.0, "conv2": 2.0, "fc": 4.0}
    assert by_variance.ascending() == ["conv2", "fc", "conv1"]
    by_step = LayerStatistics(network, given, step(normalise="step"))
    for layer in layers(network):
        assert by_step.sorted_by[layer.name] == 1.0 / squared_step(parameter(network, layer.weight), 4)


def test_q4_differences_at_a_higher_rate_are_divided_by_its_square(network: ModelGraph) -> None:
    given = recorded(dict.fromkeys(NAMES, 4.0), dict.fromkeys(NAMES, 1.0), learning_rates=(0.2, 0.1))
    assert LayerStatistics(network, given, step()).mean_squares["fc"] == pytest.approx([100.0, 100.0])


def test_q5_a_prefix_of_the_order_gets_fewer_bits(network: ModelGraph, images: Tensor) -> None:
    given = scripted(conv1=3.0, conv2=1.0, fc=2.0)
    for budget, chosen in ((9.0, set()), (10.0, {"conv2"}), (25.0, {"conv2", "fc"}), (30.0, set(NAMES))):
        asked = step(bits=(8, 2), statistics=given, max_drop_pp=budget)
        result = assigned(network, images, asked, evaluate=ten_points_a_layer)
        assert result.order == ("conv2", "fc", "conv1")
        assert {name for name, bits in result.precision.items() if bits == 2} == chosen
        assert result.accuracy_first - result.accuracy_second == 10.0 * len(chosen)


def test_q5_each_lower_precision_is_tried_within_the_layers_chosen_before(network: ModelGraph, images: Tensor) -> None:
    asked = step(bits=(8, 4, 2), statistics=scripted(conv1=3.0, conv2=1.0, fc=2.0), max_drop_pp=10.0)
    result = assigned(network, images, asked)
    four, two = result.passes
    assert (four.bits, two.bits) == (4, 2)
    assert two.candidates == four.chosen
    assert [result.precision[name] for name in result.order] == sorted(result.precision.values())


# ---- Search ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 8, 22, 54])
def test_q6_binary_search_finds_what_a_linear_one_finds_in_log_many_networks(size: int) -> None:
    for longest in range(size + 1):
        calls: list[int] = []

        def accuracy_of(count: int, longest: int = longest, calls: list[int] = calls) -> float:
            calls.append(count)
            return 90.0 - 0.01 * count if count <= longest else 80.0 - count

        binary = PrefixSearch(size, accuracy_of, 90.0, 1.0)
        assert binary.find("binary", verify_neighbours=False) == longest
        assert len(calls) <= math.ceil(math.log2(size + 1))
        assert PrefixSearch(size, accuracy_of, 90.0, 1.0).find("linear", verify_neighbours=False) == longest


def test_q6_a_loss_equal_to_the_threshold_is_within_it() -> None:
    # 91.5 - 91.1 is a little more than 0.4 in binary.
    assert PrefixSearch(1, lambda _: 91.1, 91.5, 0.4).find("binary", verify_neighbours=False) == 1
    assert PrefixSearch(1, lambda _: 91.09, 91.5, 0.4).find("binary", verify_neighbours=False) == 0


def test_q6_neighbours_beyond_a_dip_are_found() -> None:
    accuracies = {1: 90.0, 2: 90.0, 3: 80.0, 4: 90.0, 5: 80.0, 6: 80.0, 7: 80.0}
    assert PrefixSearch(7, accuracies.__getitem__, 90.0, 0.5).find("binary", verify_neighbours=False) == 4
    accuracies[4], accuracies[5] = 80.0, 90.0
    assert PrefixSearch(7, accuracies.__getitem__, 90.0, 0.5).find("binary", verify_neighbours=False) == 2
    accuracies[3], accuracies[4] = 80.0, 90.0
    search = PrefixSearch(7, accuracies.__getitem__, 90.0, 0.5)
    assert search.find("binary", verify_neighbours=True) >= 4
    assert PrefixSearch(7, accuracies.__getitem__, 90.0, 0.5).find("linear", verify_neighbours=False) == 5


def test_q6_losses_are_against_the_network_at_the_first_precision_not_the_float_one(
    network: ModelGraph, images: Tensor
) -> None:
    asked = step(bits=(3, 2), statistics=scripted(conv1=3.0, conv2=1.0, fc=2.0), max_drop_pp=5.0)
    result = assigned(network, images, asked)
    assert result.accuracy_given == 100.0
    assert result.accuracy_first < 100.0
    for trial in result.passes[0].trials:
        assert trial.drop_pp == result.accuracy_first - trial.accuracy
        assert trial.is_within == (trial.drop_pp <= 5.0)


def test_q6_no_layer_within_the_threshold_leaves_the_first_network(network: ModelGraph, images: Tensor) -> None:
    asked = step(bits=(16, 2), statistics=scripted(conv1=3.0, conv2=1.0, fc=2.0), max_drop_pp=0.0, exclude=("fc",))
    result = assigned(network, images, asked)
    assert set(result.precision.values()) == {16}
    assert result.accuracy_second == result.accuracy_first
    assert result.warnings == ("No layer met the tolerance of 0.0 pp: all keep 16 bits.",)


def test_q7_accuracy_is_the_recognition_rate(network: ModelGraph, images: Tensor) -> None:
    """What is compared is the part of images with the right class, in percent."""
    seen: list[float] = []

    def evaluate(graph: ModelGraph) -> float:
        right = graph(images)[0].argmax(1) == network(images)[0].argmax(1)
        seen.append(100 * int(right.sum()) / len(images))
        return seen[-1]

    given = scripted(conv1=3.0, conv2=1.0, fc=2.0)
    result = assigned(network, images, step(statistics=given, bits=(8, 2)), evaluate=evaluate)
    assert {result.accuracy_given, result.accuracy_first, result.accuracy_second} <= set(seen)
    assert {trial.accuracy for trial in result.passes[0].trials} <= set(seen)


# ---- Layers that are left out ----------------------------------------------------------------------------------------


def test_q8_the_layer_with_the_smallest_statistic_can_be_left_out(network: ModelGraph, images: Tensor) -> None:
    given = scripted(conv1=3.0, conv2=1.0, fc=2.0)
    result = assigned(network, images, step(statistics=given, exclude_smallest=True, max_drop_pp=100.0))
    assert result.precision == {"conv1": 4, "conv2": 8, "fc": 4}
    assert result.order == ("fc", "conv1")
    (left_out,) = [layer for layer in result.layers if layer.left_out]
    assert (left_out.layer, left_out.left_out) == ("conv2", "it has the smallest statistic")


def test_layers_whose_bits_are_set_by_hand_keep_them_in_every_network_tried(
    network: ModelGraph, images: Tensor
) -> None:
    """At 2 bits the first layer costs its ten points in all of them, the reference included, so it isn't held against others."""
    by_hand = QUANTIZATION.model_copy(update={"layer_bits": {"conv1": 2}})
    asked = step(bits=(8, 2), max_drop_pp=10.0, statistics=scripted(conv1=1.0, conv2=2.0, fc=3.0))
    result = assigned(network, images, asked, quantization=by_hand, evaluate=ten_points_a_layer)
    assert result.precision == {"conv1": 2, "conv2": 2, "fc": 8}
    assert (result.accuracy_first, result.accuracy_second) == (80.0, 70.0)
    assert result.order == ("conv2", "fc")
    assert {layer.layer for layer in result.layers if layer.left_out == FIXED} == {"conv1"}


def test_frozen_layers_say_nothing_and_are_left_out_unless_asked_for(network: ModelGraph) -> None:
    given = scripted(conv1=3.0, conv2=0.0, fc=2.0)
    assert LayerStatistics(network, given, step()).left_out() == {"conv2": "its weights never moved"}
    assert LayerStatistics(network, given, step(frozen="include")).left_out() == {}
    assert LayerStatistics(network, given, step(exclude=("fc",), exclude_smallest=True)).left_out() == {
        "fc": "excluded", "conv2": "its weights never moved", "conv1": "it has the smallest statistic",
    }  # fmt: skip


# ---- The second network ----------------------------------------------------------------------------------------------


def test_q9_chosen_layers_have_few_values_and_the_others_keep_the_first_precision(
    network: ModelGraph, images: Tensor
) -> None:
    precision = {"conv1": 8, "conv2": 2, "fc": 4}
    result = quantized(network, images, precision=precision)
    bits = {layer.layer: layer.weight_bits for layer in result.network.convolutions}
    assert bits == precision
    for layer in result.network.convolutions:
        assert -(2 ** (bits[layer.layer] - 1)) <= int(layer.weight.min())
        assert int(layer.weight.max()) < 2 ** (bits[layer.layer] - 1)
        for channel in layer.weight.flatten(1):
            assert len(set(channel.tolist())) <= 2 ** bits[layer.layer]
    many = next(layer for layer in result.network.convolutions if layer.layer == "conv1")
    assert len(set(many.weight.flatten().tolist())) > 16


def test_q9_networks_of_the_search_are_those_of_method_f_at_either_precision(
    network: ModelGraph, images: Tensor
) -> None:
    def calibration(_: ModelGraph, count: int) -> Iterator[Tensor]:
        yield from torch.split(images[:count], 16)

    networks = SecondNetworks(network, QUANTIZATION, (8, 2), calibration, lambda *_: None)
    first = quantized(network, images, calibration_images=40)
    for made, wanted in zip(networks.network({}).convolutions, first.network.convolutions, strict=True):
        assert torch.equal(made.weight, wanted.weight)
        assert torch.equal(made.bias, wanted.bias)
    # The first layer reads the same image whatever its precision is, so it is rounded alike.
    lower = quantized(network, images, calibration_images=40, precision={"conv1": 2}).network.convolutions[0]
    mixed = networks.network({"conv1": 2}).convolutions
    assert torch.equal(mixed[0].weight, lower.weight)
    assert [layer.weight_bits for layer in mixed] == [2, 8, 8]


@pytest.mark.parametrize(("bits", "dtype"), [(2, torch.int8), (8, torch.int8), (9, torch.int16), (16, torch.int16)])
def test_layers_that_wait_to_be_tried_take_few_bytes_and_lose_nothing(
    network: ModelGraph, images: Tensor, bits: int, dtype: torch.dtype
) -> None:
    for layer in quantized(network, images, calibration_images=40, weight_bits=bits).network.convolutions:
        assert layer.put_away().weight.dtype == dtype
        assert torch.equal(layer.put_away().taken_out().weight, layer.weight)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": (8, 4)},  # 577: a first and a second bit precision
        {"bits": (16, 3)},  # 939: lower-bit precision, whichever
        {"bits": (8, 4), "reference": "initial", "aggregate": "last"},  # 828: initial against learned weights
    ],
)
def test_q10_the_wording_of_each_patent_is_a_setting(
    network: ModelGraph, images: Tensor, options: dict[str, Any]
) -> None:
    learning = {"epochs": 2, "batch_size": 16, "augment": "none"}
    result = assigned(network, images, step(learning=learning, max_drop_pp=100.0, **options))
    assert set(result.precision.values()) == {options["bits"][1]}
    assert result.average_bits == options["bits"][1]


# ---- Controls --------------------------------------------------------------------------------------------------------


def test_q12_the_same_number_of_layers_is_tried_in_other_orders(network: ModelGraph, images: Tensor) -> None:
    asked = step(bits=(8, 2), statistics=scripted(conv1=3.0, conv2=1.0, fc=2.0), max_drop_pp=20.0, controls=5)
    result = assigned(network, images, asked, evaluate=ten_points_a_layer)
    assert result.passes[0].chosen == 2
    assert [control.order for control in result.controls] == [
        "reversed",
        "parameters",
        "quantization_error",
        *["random"] * 5,
    ]
    assert len({control.seed for control in result.controls if control.order == "random"}) == 5
    for control in result.controls:
        assert control.drop_pp == result.accuracy_first - control.accuracy
        assert 2 < control.average_bits < 8


def test_q12_orders_are_what_they_are_called(network: ModelGraph) -> None:
    weights = {layer.name: parameter(network, layer.weight) for layer in layers(network)}  # 72, 576 and 1,280
    orders = Orders(["conv2", "fc", "conv1"], weights, {"conv1": 0.2, "conv2": 0.3, "fc": 0.1})
    assert orders.named("differences", 0) == ["conv2", "fc", "conv1"]
    assert orders.named("reversed", 0) == ["conv1", "fc", "conv2"]
    assert orders.named("parameters", 0) == ["fc", "conv2", "conv1"]
    assert orders.named("quantization_error", 0) == ["fc", "conv1", "conv2"]
    assert len({tuple(orders.named("random", seed)) for seed in range(20)}) > 3
    assert orders.named("random", 3) == orders.named("random", 3)


def test_same_seed_same_precision(network: ModelGraph, images: Tensor) -> None:
    asked = step(learning={"epochs": 2, "batch_size": 16}, order="random", max_drop_pp=10.0)
    first, second = (assigned(network, images, asked) for _ in range(2))
    assert first.as_details() == second.as_details()


def test_sizes_are_those_of_the_bits(network: ModelGraph, images: Tensor) -> None:
    given = scripted(conv1=3.0, conv2=1.0, fc=2.0)
    result = assigned(network, images, step(statistics=given, max_drop_pp=100.0, exclude=("conv1",)))
    weights, work = {"conv1": 72, "conv2": 576, "fc": 1280}, {"conv1": 72 * 64, "conv2": 576 * 64, "fc": 1280}
    assert result.weight_bytes == sum(count * result.precision[name] for name, count in weights.items()) // 8
    assert result.bit_operations == sum(count * 8 * result.precision[name] for name, count in work.items())


def test_recordings_that_contradict_themselves_are_refused() -> None:
    change = LayerChange(cycle_start=1.0, initial=1.0)
    with pytest.raises(ValidationError, match="cycle 2 has other layers than the first"):
        LearningStatistics(cycles=({"a": change}, {"b": change}), variances={"a": 1.0})
    with pytest.raises(ValidationError, match="variances are of other layers"):
        LearningStatistics(cycles=({"a": change},), variances={})
    with pytest.raises(ValidationError, match="2 learning rates are given for 1 cycles"):
        LearningStatistics(cycles=({"a": change},), variances={"a": 1.0}, learning_rates=(0.1, 0.1))
    with pytest.raises(ValidationError, match="bits must fall"):
        step(bits=(4, 8))
