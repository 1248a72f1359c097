"""Method F as a step, claim element by claim element (docs/methods.md)."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import integrate, stats
from torch import Tensor, nn
from torch.nn import functional

from jobs.errors import RecipeRefused
from jobs.recipe import QuantizeFixedPoint
from tests.workers.integer_networks import around, every_operation, example_images, quantized, recipe
from tests.workers.networks import graph_of
from workers.compression.eligibility import why_not_in_integers
from workers.compression.fixed_point_codings import Preparations, Prepared
from workers.compression.fixed_point_lengths import align, quantized_weights, weight_lengths
from workers.compression.fixed_point_moves import channels_of
from workers.compression.fixed_point_plan import make_plan
from workers.compression.fixed_point_rounding import Geometry, InputMoments, compensated, measure
from workers.compression.fixed_point_rules import BOUNDS, KURTOSIS, Expression
from workers.compression.fixed_point_simulation import grid_of
from workers.compression.fixed_point_statistics import ChannelStatistics, Observer, observe, observed_while
from workers.compression.fixed_point_training import TrainingNetwork
from workers.compression.fold_batchnorm import fold_batchnorm
from workers.compression.quantize_fixed_point import FixedPointResult, quantize_fixed_point
from workers.fixed_point.coding import Coding, shift_right_rounding
from workers.fixed_point.network import Addition, Convolution, IntegerNetwork, Table, Value
from workers.fixed_point.run import IntegerRunner
from workers.models.graph import ModelGraph, copy_graph, layers, parameter, set_parameter


@pytest.fixture(scope="module")
def images() -> Tensor:
    return example_images()


@pytest.fixture(scope="module")
def network() -> ModelGraph:
    return every_operation()


class TwoLayers(nn.Module):
    """Two convolutions, the channels between them spread by powers of two that ReLU lets through."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)
        scales = 2.0 ** (spread * torch.randn(16, generator=torch.Generator().manual_seed(5)))
        with torch.no_grad():
            self.one.weight *= scales.reshape(-1, 1, 1, 1)
            assert self.one.bias is not None
            self.one.bias *= scales
            self.two.weight /= scales.reshape(1, -1, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.fc(torch.relu(self.two(torch.relu(self.one(image)))).mean((2, 3)))
        return result


def folded_convolutions(network: IntegerNetwork) -> dict[str, Convolution]:
    return {operation.layer: operation for operation in network.convolutions}


# ---- Statistics ------------------------------------------------------------------------------------------------------


def test_f1_statistics_of_every_channel_are_those_of_numpy(network: ModelGraph, images: Tensor) -> None:
    seen = torch.cat([images, images.flip(0) * 3, images.relu()])
    found: ChannelStatistics | None = None
    for batch in torch.split(seen, 7):
        one = ChannelStatistics.of(batch)
        found = one if found is None else found.merged(one)
    assert found is not None
    rows = seen.double().transpose(0, 1).flatten(1).numpy()
    assert found.count == rows.shape[1]
    for ours, theirs in (
        (found.mean, rows.mean(1)),
        (found.variance, rows.var(1)),
        (found.mean_square, (rows**2).mean(1)),
        (found.skewness, stats.skew(rows, axis=1)),
        (found.kurtosis, stats.kurtosis(rows, axis=1, fisher=False)),
        (found.minimum, rows.min(1)),
        (found.maximum, rows.max(1)),
        (found.nonzero_rms, np.sqrt((rows**2).sum(1) / (rows != 0).sum(1))),
    ):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6)
    pooled = found.pooled()
    np.testing.assert_allclose(pooled.kurtosis.numpy(), stats.kurtosis(rows.ravel(), fisher=False), rtol=1e-6)
    # The step reports them for every tensor that it gives lengths to, the input among them.
    profile = quantized(network, images).profile
    plan = make_plan(fold_batchnorm(network))
    assert profile.keys() == set(plan.coded)
    assert len(profile[plan.input]["kurtosis"]) == 4


def test_f2_statistics_are_taken_while_the_network_is_trained(network: ModelGraph, images: Tensor) -> None:
    passes = []

    def train(watched: ModelGraph) -> ModelGraph:
        learned = copy_graph(watched)
        learned.module(images[:16])
        learned.module(images[16:])
        passes.append(len(images))
        name = layers(learned)[0].weight
        set_parameter(learned, name, parameter(learned, name) * 1.5)
        return learned

    observer = Observer(make_plan(fold_batchnorm(network)).coded)
    learned = observed_while(train, network, observer)
    assert observer.found.keys() == observer.names
    assert {found.count % len(images) for found in observer.found.values()} == {0}
    name = layers(network)[0].weight
    torch.testing.assert_close(parameter(learned, name), parameter(network, name) * 1.5)

    # Where a batch norm follows, it is its output that is seen, as after folding.
    folded = fold_batchnorm(network)
    wanted = Observer(observer.names)
    observe(make_plan(folded).graph, [images[:16], images[16:]], wanted.see, wanted.names)
    for name, found in observer.found.items():
        torch.testing.assert_close(found.rms, wanted.found[name].rms, rtol=1e-4, atol=1e-6)

    options = {"statistics": "training", "pretraining": {"epochs": 1}, "rule": "pdf_sqnr"}
    result = quantize_fixed_point(network, recipe(**options), around(network, images, pretrain=train), lambda *_: None)
    assert len(passes) == 2
    assert result.profile
    assert result.calibration_images == 0  # no distribution was measured on any


# ---- Fixed-point expressions -----------------------------------------------------------------------------------------


def test_f3_expression_covers_a_gaussian_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    for sigma in (0.3, 1.0, 1.7, 25.0):
        values = torch.randn(10**6, generator=generator, dtype=torch.float64) * sigma
        found = ChannelStatistics.of(values.reshape(1, 1, -1))
        (length,) = Expression(8, True, "pdf_sqnr", "gaussian").lengths(found).tolist()
        assert length == int(np.floor(5.298 - np.log2(float(found.rms[0]))))
        integers = Coding(8, True, (length,)).quantize(values.reshape(1, 1, -1))
        # What would lie beyond the ends; the worst case is a range that ends at 3.25 sigma.
        outside = ((values * 2.0**length >= 127.5) | (values * 2.0**length < -128.5)).double().mean()
        assert float(outside) < 0.002
        assert int(integers.max()) <= 127


@pytest.mark.parametrize("rule", ["pdf_sqnr", "empirical_mse", "max_abs", "k_sigma"])
@pytest.mark.parametrize("signed", [True, False])
def test_f4_channels_have_lengths_of_their_own(rule: Any, signed: bool) -> None:
    values = torch.randn(1, 1, 5000, generator=torch.Generator().manual_seed(2))
    values = values if signed else values.relu()
    both = torch.cat([values, values * 8], 1)
    found = ChannelStatistics.of(both)
    expression = Expression(8, signed, rule)
    first, second = expression.lengths(found, expression.errors(both, found)).tolist()
    assert first - second == 3


def test_empirical_rule_has_the_smallest_error_of_all_lengths() -> None:
    values = torch.distributions.Laplace(0.0, 1.0).sample((1, 3, 4000)) * torch.tensor([0.1, 1.0, 7.0]).reshape(1, 3, 1)
    for bits, signed in itertools.product((2, 4, 8), (True, False)):
        given = values if signed else values.abs()
        found = ChannelStatistics.of(given)
        expression = Expression(bits, signed)
        chosen = expression.lengths(found, expression.errors(given, found))

        def error(lengths: Tensor, given: Tensor = given, bits: int = bits, signed: bool = signed) -> Tensor:
            coding = Coding(bits, signed, tuple(lengths.tolist()))
            return (coding.values_of(coding.quantize(given)) - given).square().sum((0, 2))

        for other in range(-6, 14):
            assert bool((error(chosen) <= error(torch.full((3,), other)) + 1e-9).all())


def test_dead_channels_and_channels_of_few_values() -> None:
    values = torch.randn(1, 3, 2000, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 0.0, 4.0]
    ).reshape(1, 3, 1)
    found = ChannelStatistics.of(values)
    expression = Expression(8, True, "max_abs")
    lengths = expression.lengths(found).tolist()
    assert lengths[1] in (lengths[0], lengths[2])
    few = ChannelStatistics.of(values[..., :50])
    guarded = expression.with_guard(few, expression.lengths(few))
    torch.testing.assert_close(guarded[[0, 2]], expression.longest_for(few.max_abs)[[0, 2]] - 1)
    assert expression.with_guard(found, expression.lengths(found)).tolist() == lengths


def _density(pdf: str, x: float) -> float:
    s = np.sqrt(3) / np.pi
    formulas = {
        "gaussian": np.exp(-x * x / 2) / np.sqrt(2 * np.pi),
        "logistic": np.exp(-x / s) / (s * (1 + np.exp(-x / s)) ** 2),
        "hypsecant": 0.5 / np.cosh(np.pi * x / 2),
        "laplace": np.exp(-np.sqrt(2) * x) / np.sqrt(2),
    }
    return float(formulas[pdf])


@pytest.mark.parametrize("pdf", ["gaussian", "logistic", "hypsecant", "laplace"])
@pytest.mark.parametrize("bits", [8, 12])
def test_f13_bounds_are_where_two_lengths_err_alike(pdf: str, bits: int) -> None:
    """At the bound, a range twice as wide has the same error: numbers cut off against steps twice as coarse."""

    def error(length: float) -> float:
        step = 2.0**-length
        total = 0.0
        for steps in (2 ** (bits - 1) - 0.5, 2 ** (bits - 1) + 0.5):
            edge = steps * step
            last = edge - step / 2
            beyond = integrate.quad(lambda x: (x - last) ** 2 * _density(pdf, x), edge, 60, limit=200)[0]  # noqa: B023
            outside = integrate.quad(lambda x: _density(pdf, x), edge, 60, limit=200)[0]
            total += beyond + (0.5 - outside) * step**2 / 12
        return total

    bound = BOUNDS[pdf][bits - 2]
    assert error(bound) == pytest.approx(error(bound - 1), rel=0.01)


def test_f13_distribution_is_that_of_nearest_kurtosis() -> None:
    generator = np.random.default_rng(0)
    samples = {
        "uniform": generator.uniform(-1, 1, 200_000),
        "gaussian": generator.normal(size=200_000),
        "logistic": generator.logistic(size=200_000),
        "laplace": generator.laplace(size=200_000),
        "supercauchy": generator.standard_t(3, 200_000),
    }
    assert set(samples) - {"supercauchy"} <= KURTOSIS.keys()
    for name, values in samples.items():
        found = ChannelStatistics.of(torch.from_numpy(values).reshape(1, 1, -1))
        assert Expression(8, True, "pdf_sqnr").distributions(found) == [name]
        one_sided = ChannelStatistics.of(torch.from_numpy(np.maximum(values, 0)).reshape(1, 1, -1))
        assert Expression(8, False, "pdf_sqnr").distributions(one_sided) == [name]


# ---- The result of the convolution -----------------------------------------------------------------------------------


def test_f5_f6_f7_published_vector() -> None:
    inputs, own = torch.tensor([[5, 3, 6]]), torch.tensor([[7, 6, 4]])
    weight = torch.tensor([-50 / 2**7, 100 / 2**6, 7 / 2**4]).reshape(1, 3, 1, 1).double()
    lengths = align(weight, own, inputs, "shift", weight_bits=8, input_power=torch.ones(1, 3))
    assert lengths.products.tolist() == [[12, 9, 10]]
    assert lengths.bias.tolist() == [12]
    assert lengths.shifts.tolist() == [[0, 3, 2]]
    assert lengths.tuned.tolist() == [[7, 9, 6]]
    integers = quantized_weights(weight, lengths.grid, 8)
    assert integers.flatten().tolist() == [-50, 100, 7]
    layer = _layer(integers, lengths.shifts, bias=1229, lengths=12, out_shift=7)
    network = IntegerNetwork(
        "x", "y",
        {"x": Value("x", (3, 1, 1), Coding(8, True, (5, 3, 6))), "y": Value("y", (1, 1, 1), Coding(8, True, (5,)))},
        (layer,),
    )  # fmt: skip
    x = torch.tensor([12, -7, 33]).reshape(1, 3, 1, 1)
    accumulator = int((layer.aligned_weight[0, :, 0, 0] * x.flatten()).sum()) + 1229
    assert accumulator == -4047
    assert accumulator * 2.0**-12 == -0.988037109375
    assert IntegerRunner(network).run(x).tolist() == [[-32]]


def _layer(weight: Tensor, shifts: Tensor, *, bias: int, lengths: int, out_shift: int) -> Convolution:
    outputs = len(weight)
    return Convolution(
        layer="layer", source="x", output="y", weight=weight, weight_bits=8, shifts=shifts,
        bias=torch.full((outputs,), bias), bias_bits=16, lengths=torch.full((outputs,), lengths),
        out_shift=torch.full((outputs,), out_shift), low=torch.full((outputs,), -128), high=torch.full((outputs,), 127),
    )  # fmt: skip


@pytest.mark.parametrize("how", ["shift", "retune", "retune_opt"])
@pytest.mark.parametrize("granularity", ["per_output_channel", "per_plane", "per_layer"])
def test_f5_f6_f7_hold_in_every_layer(network: ModelGraph, images: Tensor, how: str, granularity: str) -> None:
    result = quantized(network, images, align=how, weight_lengths=granularity, rounding="nearest")
    checked = 0
    for layer in result.network.convolutions:
        inputs = result.network.values[layer.source].coding.lengths_tensor()
        per_plane = inputs.reshape(layer.groups, -1).repeat_interleave(len(layer.weight) // layer.groups, 0)
        # FL_in + FL_w' = FL_b for every plane, where FL_w' is the stored length and the shift.
        grid = grid_of(layer, result.network.values[layer.source].coding)
        assert torch.equal(per_plane + grid + layer.shifts, layer.lengths[:, None].expand_as(grid))
        assert bool((layer.shifts >= 0).all())
        if how != "shift":
            assert not bool(layer.shifts.any())
        elif layer.layer not in {report.layer for report in result.layers if report.capped_outputs}:
            assert torch.equal(layer.lengths, (per_plane + grid).amax(1))  # claim 4: the longest product's
            checked += 1
    if how == "shift":
        assert checked == len(result.network.convolutions)


def test_f7_shift_loses_nothing_and_retune_opt_less_than_retune() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 32, 3, 3, dtype=torch.float64)
    inputs = torch.randint(2, 8, (1, 32)).expand(8, 32)
    weight = weight * 2.0 ** inputs[0].reshape(1, -1, 1, 1)  # inputs that are small have weights that are large
    own = weight_lengths(weight, Expression(8, True), "per_plane")
    power = 4.0 ** -inputs.double()

    def noise(how: Any) -> float:
        lengths = align(weight, own, inputs, how, weight_bits=8, input_power=power)
        numbers = quantized_weights(weight, lengths.grid, 8) * 2.0 ** -lengths.grid[:, :, None, None].double()
        return float(((numbers - weight).square().sum((2, 3)) * power).sum())

    by_itself = quantized_weights(weight, own, 8) * 2.0 ** -own[:, :, None, None].double()
    assert noise("shift") == pytest.approx(float(((by_itself - weight).square().sum((2, 3)) * power).sum()))
    assert noise("retune_opt") <= noise("retune")


def test_bias_and_accumulator_fit_and_what_was_capped_is_recorded(network: ModelGraph, images: Tensor) -> None:
    result = quantized(network, images, bias_bits=6, weight_bits=16, activation_bits=16, align="shift")
    assert any(layer.capped_outputs for layer in result.layers)
    for layer in result.network.convolutions:
        assert int(layer.bias.abs().max()) <= 32
        assert layer.accumulator_bound(result.network.values[layer.source].coding) < 2**31
    assert max(layer.accumulator_bits for layer in result.layers) <= 32
    runner = IntegerRunner(result.network)
    runner.run(runner.quantize_input(images))
    assert runner.executed.overflows == 0


# ---- The network -----------------------------------------------------------------------------------------------------

WIDTHS = [(8, 8), (4, 8), (8, 4), (2, 3), (16, 16)]


@pytest.mark.parametrize("how", ["shift", "retune", "retune_opt"])
@pytest.mark.parametrize(("weights", "activations"), WIDTHS)
@pytest.mark.parametrize("lengths", ["per_channel", "per_layer"])
def test_f8_integers_give_exactly_what_the_simulation_gives(
    network: ModelGraph, images: Tensor, how: str, weights: int, activations: int, lengths: str
) -> None:
    result = quantized(
        network, images, align=how, weight_bits=weights, activation_bits=activations, activation_lengths=lengths
    )
    runner = IntegerRunner(result.network)
    scores = runner.scores(runner.run(runner.quantize_input(images)))
    simulated = result.graph(images)[0].double()
    # The tail of this network is a log softmax, which stays in floating point.
    torch.testing.assert_close(scores.float().log_softmax(1).double(), simulated, rtol=0, atol=0)
    assert all(isinstance(value, Value) for value in result.network.values.values())
    for value in result.network.values.values():
        is_logits = value.name == result.network.output
        assert value.coding.bits == (32 if is_logits else activations)
        # Tensors that are put behind each other bring the lengths that they have.
        assert is_logits or value.coding.is_uniform or lengths == "per_channel" or value.name == "cat"


class Vectors(nn.Module):
    """Signed and unsigned vectors of several lengths put behind each other, after clamps that begin at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 3)
        self.two = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(12, 4)

    def forward(self, image: Tensor) -> Tensor:
        unsigned = functional.relu6(self.one(image)).mean((2, 3))
        signed = self.two(image * torch.tensor([0.1, 1.0, 8.0]).reshape(3, 1, 1)).mean((2, 3))
        result: Tensor = self.fc(torch.cat([unsigned, signed], 1))
        return result


class Products(nn.Module):
    """Products of 16 bits by 16 bits, and sums of numbers whose lengths are far apart."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(4 * 64, 4)
        with torch.no_grad():
            self.small.weight /= 1000

    def forward(self, image: Tensor) -> Tensor:
        small, large = self.small(image), self.large(image)
        result: Tensor = self.fc((large * torch.sigmoid(small) + small).flatten(1))
        return result


def test_f8_products_and_sums_beyond_single_precision_are_simulated_exactly() -> None:
    torch.manual_seed(2)
    images = torch.randn(200, 3, 8, 8)
    result = quantized(graph_of(Products().eval(), images[:2]), images, weight_bits=16, activation_bits=16)
    runner = IntegerRunner(result.network)
    scores = runner.scores(runner.run(runner.quantize_input(images)))
    torch.testing.assert_close(scores.float(), result.graph(images)[0], rtol=0, atol=0)


def test_f8_vectors_of_other_signs_are_simulated_exactly() -> None:
    torch.manual_seed(2)
    images = torch.randn(40, 3, 8, 8)
    network = graph_of(Vectors().eval(), images[:2])
    result = quantized(network, images)
    runner = IntegerRunner(result.network)
    scores = runner.scores(runner.run(runner.quantize_input(images)))
    torch.testing.assert_close(scores, result.graph(images)[0].double(), rtol=0, atol=0)
    assert any(name.endswith("_recoded") for name in result.network.values)


def test_relu6_has_the_bit_of_the_sign_for_itself() -> None:
    torch.manual_seed(2)
    images = torch.randn(40, 3, 8, 8)
    result = quantized(graph_of(Vectors().eval(), images[:2]), images)
    (first, *_) = result.network.convolutions
    assert first.layer == "one"
    assert not result.network.values[first.output].coding.signed


def test_f8_nothing_in_the_network_is_a_floating_point_number(network: ModelGraph, images: Tensor) -> None:
    result = quantized(network, images)
    runner = IntegerRunner(result.network)
    for tensor in runner.run_all(runner.quantize_input(images)).values():
        assert tensor.dtype == torch.int64
    for layer in result.network.convolutions:
        for tensor in (layer.weight, layer.bias, layer.shifts, layer.out_shift, layer.low, layer.high):
            assert tensor.dtype == torch.int64
    assert any(isinstance(operation, Table) for operation in result.network.operations)


def test_f9_nothing_shifts_between_partial_sums_where_weights_are_aligned_before(
    network: ModelGraph, images: Tensor
) -> None:
    result = quantized(network, images, align="shift", weight_lengths="per_plane")
    assert any(layer.largest_shift for layer in result.layers)
    stored, shifting = IntegerRunner(result.network), IntegerRunner(result.network, prestored=False)
    integers = stored.quantize_input(images)
    assert torch.equal(stored.run(integers), shifting.run(integers))
    assert stored.executed.plane_shifts == 0
    assert shifting.executed.plane_shifts > 0
    tuned = IntegerRunner(quantized(network, images, align="retune_opt").network, prestored=False)
    tuned.run(integers)
    assert tuned.executed.plane_shifts == 0


def test_f10_retraining_keeps_the_lengths_and_puts_weights_on_their_grid(network: ModelGraph, images: Tensor) -> None:
    pruned = copy_graph(network)
    name = next(layer.weight for layer in layers(pruned) if layer.name == "dilated")
    weight = parameter(pruned, name).detach().clone()
    weight[:, :, 0, 0] = 0
    set_parameter(pruned, name, weight)
    targets = pruned(images)[0].detach().exp()

    def train(learning: ModelGraph) -> ModelGraph:
        learned = copy_graph(learning)
        parameters = [p.requires_grad_(True) for p in learned.module.parameters() if p.is_floating_point()]
        optimizer = torch.optim.Adam(parameters, lr=3e-3)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = functional.kl_div(learned.module(images)[0], targets, reduction="batchmean")
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert min(losses) < losses[0]
        return learned

    options = {"weight_bits": 3, "activation_bits": 5, "rounding": "nearest"}
    plain = quantized(pruned, images, **options)
    result = quantize_fixed_point(
        pruned, recipe(**options, training={"epochs": 1}), around(pruned, images, retrain=train), lambda *_: None
    )
    assert result.training is not None
    assert result.training.is_kept
    assert result.training.accuracy_after >= result.training.accuracy_before
    before, after = folded_convolutions(plain.network), folded_convolutions(result.network)
    assert any(not torch.equal(before[name].weight, after[name].weight) for name in before)
    for name in before:
        assert torch.equal(before[name].lengths, after[name].lengths)
        assert torch.equal(before[name].shifts, after[name].shifts)
        assert int(after[name].weight.min()) >= -4
        assert int(after[name].weight.max()) <= 3
    assert {name: value.coding for name, value in plain.network.values.items()} == {
        name: value.coding for name, value in result.network.values.items()
    }
    assert not bool(after["dilated"].weight[:, :, 0, 0].any())  # zeros of pruning stay
    runner = IntegerRunner(result.network)
    scores = runner.scores(runner.run(runner.quantize_input(images))).float().log_softmax(1)
    torch.testing.assert_close(scores, result.graph(images)[0], rtol=0, atol=0)


def test_f10_training_network_gives_what_the_integers_give(network: ModelGraph, images: Tensor) -> None:
    result = quantized(network, images)
    learning = TrainingNetwork(make_plan(fold_batchnorm(network)), result.network).made
    torch.testing.assert_close(learning(images)[0], result.graph(images)[0], rtol=1e-4, atol=1e-4)


def test_retraining_that_makes_it_worse_is_not_kept(network: ModelGraph, images: Tensor) -> None:
    def spoil(learning: ModelGraph) -> ModelGraph:
        spoiled = copy_graph(learning)
        for name, value in list(spoiled.module.named_parameters()):
            set_parameter(spoiled, name, -value.detach())
        return spoiled

    plain = quantized(network, images)
    result = quantize_fixed_point(
        network, recipe(training={"epochs": 1}), around(network, images, retrain=spoil), lambda *_: None
    )
    assert result.training is not None
    assert not result.training.is_kept
    assert "worse" in result.warnings[0]
    assert torch.equal(plain.network.convolutions[0].weight, result.network.convolutions[0].weight)


def test_f12_lengths_per_channel_beat_one_length_where_channels_differ() -> None:
    torch.manual_seed(1)
    images = torch.randn(64, 3, 8, 8)
    network = graph_of(TwoLayers(spread=2.0).eval(), images[:2])
    per_channel, per_layer = (
        quantized(network, images, activation_lengths=lengths, align="shift", rounding="nearest")
        for lengths in ("per_channel", "per_layer")
    )

    def decibels(result: FixedPointResult) -> float:
        return next(layer.output_sqnr_db for layer in result.layers if layer.layer == "two")

    assert decibels(per_channel) > decibels(per_layer) + 3


# ---- Additions -------------------------------------------------------------------------------------------------------


def additions(network: IntegerNetwork) -> list[Addition]:
    return [operation for operation in network.operations if isinstance(operation, Addition)]


@pytest.mark.parametrize("rule", ["empirical_mse", "max_abs", "pdf_sqnr"])
@pytest.mark.parametrize("lengths", ["per_channel", "per_layer"])
def test_tied_additions_shift_neither_operand(network: ModelGraph, images: Tensor, lengths: str, rule: str) -> None:
    options: dict[str, Any] = {"activation_lengths": lengths, "rule": rule, "rounding": "nearest"}
    free, tied = (quantized(network, images, additions=how, **options) for how in ("shift", "tie"))
    assert len(additions(tied.network)) == 3
    assert all(not any(left) for addition in additions(tied.network) for left in addition.left)
    assert any(any(left) for addition in additions(free.network) for left in addition.left)
    assert tied.additions is not None
    assert free.additions is not None
    assert tied.additions.count == free.additions.count == 3
    assert tied.additions.channels == free.additions.channels == 24
    assert tied.additions.shifted_channels == 0 < free.additions.shifted_channels
    assert tied.as_details()["additions"]["shifted_channels"] == 0
    # One length a tensor stays one.
    if lengths == "per_layer":
        plan = make_plan(fold_batchnorm(network))
        assert all(tied.network.values[name].coding.is_uniform for name in plan.coded if name in tied.network.values)


def test_tie_takes_the_shorter_length_and_leaves_other_tensors_alone(network: ModelGraph, images: Tensor) -> None:
    free, tied = (quantized(network, images, additions=how, rounding="nearest").network for how in ("shift", "tie"))
    plan = make_plan(fold_batchnorm(network))
    free_lengths, tied_lengths = (
        {name: net.values[name].coding.lengths for name in plan.coded} for net in (free, tied)
    )
    added = {
        origin
        for planned in plan.operations if planned.kind == "add"
        for source in planned.sources
        for origin in channels_of(plan, source) if origin is not None
    }  # fmt: skip
    for name in plan.coded:
        for channel, (mine, was) in enumerate(zip(tied_lengths[name], free_lengths[name], strict=True)):
            assert mine <= was
            assert mine == was or (name, channel) in added
    sums = [planned for planned in plan.operations if planned.kind == "add"]
    for a, b in zip(*(channels_of(plan, source) for source in sums[-1].sources), strict=True):
        assert a is not None
        assert b is not None
        assert tied_lengths[a[0]][a[1]] == tied_lengths[b[0]][b[1]]
        assert tied_lengths[a[0]][a[1]] == min(free_lengths[a[0]][a[1]], free_lengths[b[0]][b[1]])


@pytest.mark.parametrize("weight_bits", [8, 4])
def test_f8_tied_integers_give_exactly_what_the_simulation_gives(
    network: ModelGraph, images: Tensor, weight_bits: int
) -> None:
    result = quantized(network, images, additions="tie", weight_bits=weight_bits)
    runner = IntegerRunner(result.network)
    scores = runner.scores(runner.run(runner.quantize_input(images)))
    assert torch.equal(scores.float().log_softmax(1), result.graph(images)[0])


def test_channels_are_followed_through_what_moves_them(network: ModelGraph) -> None:
    """x[:, :, ::2, ::2][:, 2:6], padded by two channels on either side."""
    plan = make_plan(fold_batchnorm(network))
    padded = next(planned for planned in plan.operations if planned.kind == "pad")
    moved = plan.by_output()
    source = padded.sources[0]
    while moved[source].kind == "slice":
        (source,) = moved[source].sources
    assert channels_of(plan, padded.output) == [None] * 2 + [(source, channel) for channel in range(2, 6)] + [None] * 2


# ---- Recovery without labels -----------------------------------------------------------------------------------------


def test_lengths_are_chosen_on_enough_values_of_a_channel(
    network: ModelGraph, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample says nearly what all values say; what doesn't fit is never up to it."""
    whole, looked_at = Expression.errors, 0

    def counted(expression: Expression, values: Tensor, found: ChannelStatistics) -> Tensor:
        nonlocal looked_at
        looked_at += values.numel()
        return whole(expression, values, found)

    monkeypatch.setattr(Expression, "errors", counted)
    lengths, counts = [], []
    for enough in (500, 10**9):
        monkeypatch.setattr("workers.compression.fixed_point_codings.ENOUGH_VALUES", enough)
        looked_at = 0
        values = quantized(network, images).network.values
        lengths.append([length for value in values.values() for length in value.coding.lengths])
        counts.append(looked_at)
    assert 0 < counts[0] < 0.7 * counts[1]
    differences = [abs(one - other) for one, other in zip(*lengths, strict=True)]
    assert max(differences) <= 1
    assert sum(differences) < 0.2 * len(differences)


def test_what_recipes_have_in_common_is_prepared_once(network: ModelGraph, images: Tensor) -> None:
    asked: list[int] = []

    def calibration(_: ModelGraph, count: int) -> Iterator[Tensor]:
        asked.append(count)
        yield from torch.split(images[:count], 16)

    preparations = Preparations()
    given = {"kind": "quantize_fixed_point", "calibration_images": 32}

    def prepared(graph: ModelGraph, **options: Any) -> tuple[Prepared, int]:
        asked.clear()
        found = preparations.of(graph, QuantizeFixedPoint.model_validate(given | options), calibration)
        return found, len(asked)

    first, passes = prepared(network)
    assert passes > 0
    for same in ({"weight_bits": 3}, {"layer_bits": {"first": 2}}, {"training": {"epochs": 1}}):
        again, passes = prepared(network, **same)
        assert again is first
        assert passes == 0
    assert prepared(network, activation_bits=6)[1] > 0
    assert prepared(copy_graph(network), activation_bits=6)[1] > 0


def test_compensated_rounding_keeps_outputs_better_than_rounding_to_nearest() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(6, 6)
    x = torch.einsum("ij,njhw->nihw", mixing, torch.randn(32, 6, 9, 9)) + 0.5  # inputs that go together
    weight = torch.randn(4, 6, 3, 3, dtype=torch.float64)
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1)
    moments = measure([(x, x)], geometry, 54, images=len(x), with_covariance=True)
    grid = torch.full((4, 6), 1)

    def lost(integers: Tensor) -> float:
        numbers = (integers.double() / 2).float()
        return float((functional.conv2d(x, numbers, padding=1) - functional.conv2d(x, weight.float(), padding=1)).var())

    assert lost(compensated(weight, grid, 4, moments)) < 0.5 * lost(quantized_weights(weight, grid, 4))
    pruned = torch.where(torch.rand(weight.shape) < 0.5, 0.0, weight)
    found = compensated(pruned, grid, 4, moments)
    assert not bool(found[pruned == 0].any())


GEOMETRIES = [
    Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1),
    Geometry((3, 2), (2, 1), (0, 1), (1, 2), 2),
    Geometry((1, 1), (2, 2), (0, 0), (1, 1), 1),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_patches_of_a_grid_are_those_of_its_places(geometry: Geometry) -> None:
    images = torch.randn(3, 4, 13, 11)
    height, width = geometry.places(images)
    everything = geometry.patches(images).unflatten(2, (3, height, width))
    grid = geometry.patches(images, 4, (1, 2))
    assert torch.equal(grid, everything[:, :, :, 1::4, 2::4].flatten(2))


def test_moments_of_many_large_images_are_those_of_all_places_nearly(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    geometry = GEOMETRIES[0]
    images = functional.avg_pool2d(torch.randn(160, 2, 36, 36), 5, 1) + 0.3  # neighbours say nearly the same
    pairs = [(batch, batch + 0.1 * torch.randn_like(batch)) for batch in images.split(10)]

    def moments() -> InputMoments:
        return measure(pairs, geometry, 18, images=len(images), with_covariance=True)

    some = moments()
    monkeypatch.setattr("workers.compression.fixed_point_rounding.PLACES_PER_ROW", 10**9)
    every = moments()
    for name in ("mean", "target_mean", "power"):
        assert torch.equal(getattr(some, name), getattr(every, name))
    for one, other in ((some.covariance, every.covariance), (some.cross, every.cross)):
        assert one is not None
        assert other is not None
        assert not torch.equal(one, other)
        assert float((one - other).norm() / other.norm()) < 0.05


def test_bias_correction_takes_off_the_mean_error(network: ModelGraph, images: Tensor) -> None:
    def mean_error(**options: Any) -> float:
        result = quantized(network, images, weight_bits=3, rounding="nearest", **options)
        runner, found = IntegerRunner(result.network), dict[str, Tensor]()
        values = runner.run_all(runner.quantize_input(images))
        plan = make_plan(fold_batchnorm(network))
        observe(plan.graph, [images], found.__setitem__, ["conv2d_1"])
        given = result.network.values["conv2d_1"].coding.values_of(values["conv2d_1"])
        return float((given - found["conv2d_1"]).mean((0, 2, 3)).abs().mean())

    assert mean_error(correct_bias=True) < mean_error(correct_bias=False)


# ---- Refusals and arithmetic -----------------------------------------------------------------------------------------


def test_what_integers_cannot_do_is_refused_naming_the_node() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.GroupNorm(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.norm(self.conv(x)).mean((2, 3))
            return result

    graph = graph_of(Normed().eval(), torch.zeros(2, 3, 6, 6))
    reason = why_not_in_integers(graph)
    assert reason is not None
    assert "group_norm" in reason
    with pytest.raises(RecipeRefused, match="group_norm"):
        quantized(graph, torch.randn(4, 3, 6, 6))


def test_pretraining_is_asked_for_by_statistics_of_training() -> None:
    with pytest.raises(ValidationError, match="pretraining must be given"):
        recipe(statistics="training")
    with pytest.raises(ValidationError, match="pretraining must be given"):
        recipe(pretraining={"epochs": 1})


def test_rounding_shift_is_rounding_half_up() -> None:
    numbers = torch.arange(-300, 300)
    for shift in range(-3, 8):
        wanted = torch.floor(numbers.double() * 2.0**-shift + 0.5).long()
        assert torch.equal(shift_right_rounding(numbers, torch.tensor(shift)), wanted)


def test_same_request_gives_the_same_integers(network: ModelGraph, images: Tensor) -> None:
    one, two = (quantized(network, images, weight_bits=4) for _ in range(2))
    for a, b in zip(one.network.convolutions, two.network.convolutions, strict=True):
        assert torch.equal(a.weight, b.weight)
        assert torch.equal(a.bias, b.bias)
