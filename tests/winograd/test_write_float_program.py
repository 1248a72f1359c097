"""From graphs to float programs: what operators become, what is refused, and how the bytes lie."""

import math
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from winograd.float_program import (
    KINDS,
    Activation,
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    FloatProgram,
    Function,
    MaxPool,
    Multiplication,
    NearestUpsample,
    Operation,
    Padding,
    Scaling,
    Slice,
    WinogradConvolution,
)
from winograd.prepared_float_network import PreparedFloatNetwork
from winograd.write_float_program import NoFloatProgram

import winograd
from tests.winograd import float_reference
from tests.winograd.exported_networks import (
    BATCH,
    KEPT,
    Computes,
    Residual,
    assert_close,
    exported,
    images,
    kinds,
    program_of,
    winograd_conv2d,
)
from winograd import WinogradConv2d, library

OPERATORS = torch.ops.winograd
compiled_only = pytest.mark.skipif(not library.variants(), reason=f"plain torch computes: {library.info().why}")


# ---- One operation at a time ----------------------------------------------------------------------------------------------


def direct(channels: int = 4, filters: int = 4, **options: Any) -> nn.Conv2d:
    torch.manual_seed(channels + filters)
    return nn.Conv2d(channels, filters, **{"kernel_size": 3, "padding": 1} | options)


def batch_norm(channels: int = 4, **options: Any) -> nn.BatchNorm2d:
    norm, numbers = nn.BatchNorm2d(channels, **options), torch.Generator().manual_seed(channels)
    for x in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        if x is not None:
            x.data.uniform_(0.5, 2, generator=numbers)
    return norm


def one_group(**options: Any) -> WinogradConv2d:
    return WinogradConv2d.from_conv2d(direct(**options), m=2)


def two_runs() -> WinogradConv2d:
    runs = [0, 3, 5, 6, 10, 15, 1, 2, 4, 7, 9, 14]
    return WinogradConv2d.from_conv2d(direct(filters=6, padding=(0, 2)), m=2, positions=runs, kernel_groups=2)


def linear(inputs: int, outputs: int = 5, **options: Any) -> nn.Linear:
    torch.manual_seed(inputs)
    return nn.Linear(inputs, outputs, **options)


def residual_after(n: Any, x: Tensor) -> Tensor:
    y = n.direct(x)
    z = x.clamp(-1, 1)  # computed after what it is added to
    total: Tensor = z + y
    return total


class Scale(nn.Module):
    """Numbers that never change: of channels of images, and of all."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-1, 1, 4).reshape(1, 4, 1, 1))
        self.register_buffer("factor", torch.linspace(1, 2, 4).reshape(4, 1, 1))
        self.register_buffer("all", torch.tensor(0.25))
        self.register_buffer("columns", torch.linspace(1, 2, 9))


Case = tuple[Callable[..., Any], dict[str, Callable[[], nn.Module]], list[type[Operation]]]

C, W, A, S = Convolution, WinogradConvolution, Addition, Scaling
WRITTEN: dict[str, Case] = {
    "Winograd convolution": (lambda n, x: n.conv(x), {}, [W]),
    "Winograd convolution, relu": (lambda n, x: n.conv(x).relu(), {}, [W]),
    "Winograd convolution, relu in place": (lambda n, x: n.conv(x).relu_(), {}, [W]),
    "Winograd convolution, ReLU6": (lambda n, x: functional.relu6(n.conv(x)), {}, [W, S]),
    "Winograd convolution, addition, relu": (lambda n, x: (n.conv(x) + x).relu(), {}, [W]),
    "Winograd convolution, batch norm": (lambda n, x: n.norm(n.conv(x)), {"norm": batch_norm}, [W]),
    "Winograd convolution, batch norm, addition, relu": (
        lambda n, x: (x + n.norm(n.conv(x))).relu(), {"norm": batch_norm}, [W]),
    "Winograd convolution, relu, batch norm": (lambda n, x: n.norm(n.conv(x).relu()), {"norm": batch_norm}, [W, S]),
    "Winograd convolution, nothing, relu": (lambda n, x: n.conv(x).clone().relu(), {}, [W]),
    "Winograd convolution without bias": (lambda n, x: n.conv(x), {"conv": lambda: one_group(bias=False)}, [W]),
    "Winograd convolution of two groups": (lambda n, x: n.conv(x), {"conv": lambda: one_group(groups=2)}, [W]),
    "Winograd convolution of two runs": (lambda n, x: n.conv(x), {"conv": two_runs}, [W]),
    "convolution": (lambda n, x: n.direct(x), {"direct": direct}, [C]),
    "convolution without bias": (lambda n, x: n.direct(x), {"direct": lambda: direct(bias=False)}, [C]),
    "convolution of stride 2": (
        lambda n, x: n.direct(x), {"direct": lambda: direct(stride=2, padding=(0, 2), kernel_size=(3, 5))}, [C]),
    "dilated convolution": (lambda n, x: n.direct(x), {"direct": lambda: direct(dilation=(2, 1), filters=7)}, [C]),
    "depthwise convolution": (lambda n, x: n.direct(x), {"direct": lambda: direct(filters=8, groups=4)}, [C]),
    "convolution padded by name": (lambda n, x: n.direct(x), {"direct": lambda: direct(padding="same")}, [C]),
    "convolution padded by name, not": (lambda n, x: n.direct(x), {"direct": lambda: direct(padding="valid")}, [C]),
    "convolution, relu": (lambda n, x: n.direct(x).relu(), {"direct": direct}, [C]),
    "convolution, ReLU6 in place": (lambda n, x: functional.relu6(n.direct(x), True), {"direct": direct}, [C]),
    "convolution, batch norm": (
        lambda n, x: n.norm(n.direct(x)), {"direct": lambda: direct(bias=False), "norm": batch_norm}, [C]),
    "convolution, batch norm without weights, relu": (
        lambda n, x: n.norm(n.direct(x)).relu(), {"direct": direct, "norm": lambda: batch_norm(affine=False)}, [C]),
    "convolution, addition": (lambda n, x: n.direct(x) + x, {"direct": direct}, [C]),
    "convolution, addition in place, relu in place": (
        lambda n, x: n.direct(x).add_(x).relu_(), {"direct": direct}, [C]),
    "convolution, addition of what is computed later": (residual_after, {"direct": direct}, [S, C]),
    "convolution, relu, addition": (lambda n, x: n.direct(x).relu() + x, {"direct": direct}, [C, A]),
    "two convolutions added": (lambda n, x: n.direct(x) + n.conv(x), {"direct": direct}, [C, W]),
    "two convolutions and the image added": (lambda n, x: (n.direct(x) + n.conv(x) + x).relu(), {"direct": direct},
                                             [C, W, A]),
    "convolution read twice": (lambda n, x: read_twice(n.direct(x)), {"direct": direct}, [C, S, A]),
    "convolution added to itself": (lambda n, x: twice(n.direct(x)), {"direct": direct}, [C, A]),
    "addition": (lambda n, x: x + x, {}, [A]),
    "addition, relu": (lambda n, x: (x + x).relu(), {}, [A]),
    "relu": (lambda n, x: x.relu(), {}, [S]),
    "clamp": (lambda n, x: x.clamp(-0.5, 0.25), {}, [S]),
    "clamp from below": (lambda n, x: x.clamp(min=0.25), {}, [S]),
    "clamp from above": (lambda n, x: x.clamp_max(0.25), {}, [S]),
    "hardtanh, clamps": (lambda n, x: functional.hardtanh(x, -0.5, 0.5).clamp(min=0).clamp(0.125, 2), {}, [S]),
    "clamps apart": (lambda n, x: functional.hardtanh(x, -0.5, -0.25).clamp(0.5, 2), {}, [S]),
    "batch norm, relu": (lambda n, x: n.norm(x).relu(), {"norm": batch_norm}, [S]),
    "max pool": (lambda n, x: functional.max_pool2d(x, 2), {}, [MaxPool]),
    "max pool, padded": (lambda n, x: functional.max_pool2d(x, (3, 2), (1, 2), (1, 0), (2, 1)), {}, [MaxPool]),
    "max pool, ceil_mode for nothing": (lambda n, x: functional.max_pool2d(x, 3, ceil_mode=True), {}, [MaxPool]),
    "average pool": (lambda n, x: functional.avg_pool2d(x, 3, 2, 1), {}, [AveragePool]),
    "average pool without padding": (
        lambda n, x: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False), {}, [AveragePool]),
    "adaptive average pool": (lambda n, x: functional.adaptive_avg_pool2d(x, (3, 1)), {}, [AveragePool]),
    "mean": (lambda n, x: x.mean((-1, -2)), {}, [AveragePool]),
    "mean, kept": (lambda n, x: x.mean((2, 3), keepdim=True), {}, [AveragePool]),
    "mean, relu, linear": (lambda n, x: n.scores(x.mean((2, 3)).relu()), {"scores": lambda: linear(4)},
                           [AveragePool, S, C]),
    "pool, squeezed, linear": (
        lambda n, x: n.scores(functional.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)),
        {"scores": lambda: linear(4, bias=False)}, [AveragePool, C]),
    "flatten": (lambda n, x: x.relu().flatten(1), {}, [S]),
    "flatten, relu, linear, relu, linear": (
        lambda n, x: n.scores(n.hidden(x.flatten(1).relu()).relu()),
        {"hidden": lambda: linear(324, 6), "scores": lambda: linear(6)}, [S, C, C]),
    "linear, batch norm": (
        lambda n, x: n.norm(n.scores(x.flatten(1))),
        {"scores": lambda: linear(324), "norm": lambda: nn.BatchNorm1d(5)}, [C]),
    "view and back": (lambda n, x: n.direct(x.reshape(x.shape[0], -1).view(-1, 4, 9, 9)), {"direct": direct}, [C]),
    "dropout": (lambda n, x: n.drop(n.conv(x)).relu(), {"drop": nn.Dropout}, [W]),
    "dropout of channels": (lambda n, x: n.drop(n.conv(x)).relu(), {"drop": nn.Dropout2d}, [W]),
    "concatenation": (lambda n, x: torch.cat([n.conv(x), x, x], 1), {}, [W, Concatenation]),
    "concatenation of vectors": (
        lambda n, x: torch.cat([x.mean((2, 3)), n.scores(x.flatten(1))], -1),
        {"scores": lambda: linear(324)}, [AveragePool, C, Concatenation]),
    "slices": (lambda n, x: x[:, 1:, ::2, 1:-1:3], {}, [Slice]),
    "slices of slices": (lambda n, x: x[:, :, 1::2, 2:][:, :, 1:, ::3], {}, [Slice]),
    "slices from the end": (lambda n, x: x[:, -3:-1, -20:4], {}, [Slice]),
    "slice read twice": (lambda n, x: read_twice(x[:, :, ::2]), {}, [Slice, S, A]),
    "slice of vectors": (lambda n, x: x.mean((2, 3))[:, 1:3], {}, [AveragePool, Slice]),
    "leaky relu": (lambda n, x: functional.leaky_relu(x, 0.25), {}, [Activation]),
    "sigmoid": (lambda n, x: (8 * x).sigmoid(), {}, [S, Activation]),
    "silu, in place": (lambda n, x: functional.silu(n.conv(x), inplace=True), {}, [W, Activation]),
    "tanh of vectors": (lambda n, x: x.mean((2, 3)).tanh(), {}, [AveragePool, Activation]),
    "hardsigmoid": (lambda n, x: functional.hardsigmoid(4 * x), {}, [S, Activation]),
    "hardswish": (lambda n, x: functional.hardswish(4 * x), {}, [S, Activation]),
    "multiplication": (lambda n, x: x * x.relu(), {}, [S, Multiplication]),
    "multiplication by a number a channel": (
        lambda n, x: x.mean((2, 3), keepdim=True).sigmoid() * x, {}, [AveragePool, Activation, Multiplication]),
    "numbers": (lambda n, x: (x - 0.5) / 4, {}, [S, S]),
    "numbers after a convolution": (lambda n, x: (n.conv(x) * 0.5 + 2).relu(), {}, [W]),
    "numbers of channels": (lambda n, x: (x - n.scale.mean) * n.scale.factor, {"scale": Scale}, [S, S]),
    "numbers of vectors": (lambda n, x: n.scores(x.flatten(1)) * n.scale.all, {"scores": lambda: linear(324), "scale": Scale}, [C]),
    "upsampling": (lambda n, x: functional.interpolate(x, scale_factor=(2, 3)), {}, [NearestUpsample]),
    "upsampling to a size": (lambda n, x: functional.interpolate(x, size=(18, 9)), {}, [NearestUpsample]),
    "padding": (lambda n, x: functional.pad(x, (1, 0, 0, 2)), {}, [Padding]),
    "padding of channels": (lambda n, x: functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3)), {}, [Slice, Padding]),
}  # fmt: skip


def read_twice(x: Tensor) -> Tensor:
    return x + x.relu()


def twice(x: Tensor) -> Tensor:
    return x + x


def exported_case(name: str) -> fx.GraphModule:
    function, parts, _ = WRITTEN[name]
    return exported(Computes(function, **{part: make() for part, make in parts.items()}), images())


@pytest.mark.parametrize("name", WRITTEN)
def test_operators_become_operations(name: str) -> None:
    network = exported_case(name)
    expected = network(images())
    program, shape = program_of(network)

    assert kinds(program) == WRITTEN[name][2]
    assert shape == tuple(expected.shape[1:])
    assert_close(float_reference.run(program, images().double()).float().reshape(expected.shape), expected)


@pytest.mark.parametrize("name", WRITTEN)
def test_operation_gives_what_its_definition_says(name: str, compiled: str) -> None:
    program, shape = program_of(exported_case(name))
    prepared = PreparedFloatNetwork(program.to_tensor(), shape)
    x = torch.cat([images(), -images(), images() / 2])[:5]

    expected = float_reference.run(program, x.double()).float()
    assert_close(prepared(x), expected.reshape(-1, *shape))


def test_every_operation_is_among_them() -> None:
    assert {kind for _, _, written in WRITTEN.values() for kind in written} == set(KINDS) == set(Operation.__args__)


DECOMPOSED = ["Winograd convolution, batch norm, addition, relu", "convolution, batch norm", "max pool", "dropout",
              "flatten, relu, linear, relu, linear", "pool, squeezed, linear", "padding"]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, within torch
@pytest.mark.parametrize("name", DECOMPOSED)
def test_decomposed_operators_become_the_same(name: str) -> None:
    function, parts, expected = WRITTEN[name]
    network = Computes(function, **{part: make() for part, make in parts.items()}).eval()
    export = torch.export.export(network, (images(),), dynamic_shapes=(({0: BATCH},),))
    program, _ = program_of(export.run_decompositions().module())

    assert kinds(program) == expected
    assert_close(float_reference.run(program, images().double()).float(), network(images()).detach().flatten(1))


def test_batch_norms_are_folded_in_double_precision() -> None:
    network = exported(Computes(lambda n, x: n.norm(n.direct(x)), direct=direct(), norm=batch_norm()), images())
    program, _ = program_of(network)

    [convolution] = program.operations
    scale = network.norm.weight.double() / (network.norm.running_var.double() + 1e-5).sqrt()
    assert isinstance(convolution, Convolution)
    assert torch.equal(convolution.weights, (network.direct.weight * scale[:, None, None, None]).float())


# ---- What is refused ------------------------------------------------------------------------------------------------------


def into_a_view(x: Tensor) -> Tensor:
    x[:, :, ::2].relu_()
    return x


def read_after(x: Tensor) -> Tensor:
    same = x.flatten(1)
    x.relu_()
    return same


def into_a_slice(x: Tensor) -> Tensor:
    return x[:, :, ::2].relu_()


def transposed() -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(4, 4, 3)


REFUSED: dict[str, tuple[Callable[..., Any], dict[str, Callable[[], nn.Module]], str]] = {
    "another operator": (lambda n, x: n.conv(x).erf(), {}, r"aten\.erf\.default isn't among the operators"),
    "two outputs": (lambda n, x: (n.conv(x), x.relu()), {}, "2 outputs"),
    "an image of a batch": (lambda n, x: n.conv(x[:1]), {}, "sizes that don't change behind N"),
    "images taken from the batch": (lambda n, x: x.flatten(0, 1), {}, "N"),
    "an addition with a factor": (lambda n, x: torch.add(n.conv(x), x, alpha=2), {}, "adds other than two images"),
    "an addition that broadcasts": (lambda n, x: n.conv(x) + x.mean((2, 3), True), {}, "adds other than two images"),
    "numbers of columns": (lambda n, x: n.conv(x) * n.scale.columns, {"scale": Scale}, "one number for each channel"),
    "numbers less an image": (lambda n, x: 1 - n.conv(x), {}, "isn't among the operators"),
    "a division by an image": (lambda n, x: n.conv(x) / x, {}, "divides by what is computed"),
    "a difference of images": (lambda n, x: n.conv(x) - x, {}, "subtracts what is computed"),
    "a multiplication by rows": (lambda n, x: n.conv(x) * x.mean(3, True), {}, "other dimensions"),
    "a multiplication by other pixels": (lambda n, x: n.conv(x) * x[:, :1], {}, "multiplies other than images"),
    "upsampling by halves": (lambda n, x: functional.interpolate(x, scale_factor=1.5), {}, "no whole multiple"),
    "bilinear upsampling": (
        lambda n, x: functional.interpolate(x, scale_factor=2, mode="bilinear"), {}, "isn't among the operators"),
    "weights that are computed": (
        lambda n, x: winograd.conv2d(x, n.conv.weights * 2, KEPT, 4, 1), {}, "none of its images"),
    "written into the input": (lambda n, x: x.relu_(), {}, "writes into what something else may read"),
    "written into what is read": (lambda n, x: read_after(n.conv(x)), {}, "writes into"),
    "written into a slice": (lambda n, x: into_a_slice(n.conv(x)), {}, "writes into"),
    "written into a view": (lambda n, x: into_a_view(n.conv(x)), {}, "writes into"),
    "clamps by tensors": (lambda n, x: x.clamp(min=x.mean()), {}, "isn't among the operators"),
    "a transposed convolution": (lambda n, x: n.up(x), {"up": transposed}, "isn't among the operators"),
    "padding on one side": (
        lambda n, x: n.direct(x), {"direct": lambda: direct(kernel_size=2, padding="same")}, "more on one side"),
    "padding with ones": (lambda n, x: functional.pad(x, (1, 1), value=1.0), {}, "other than zeros"),
    "padding by reflection": (lambda n, x: functional.pad(x, (1, 1, 1, 1), mode="reflect"), {}, "other than zeros"),
    "negative padding": (lambda n, x: functional.pad(x, (-1, 1)), {}, "cuts images off"),
    "ceil_mode": (lambda n, x: functional.max_pool2d(x, 2, ceil_mode=True), {}, "reach beyond the padding"),
    "a divisor": (lambda n, x: functional.avg_pool2d(x, 2, divisor_override=3), {}, "a divisor of its own"),
    "windows of different sizes": (lambda n, x: functional.adaptive_avg_pool2d(x, 2), {}, "windows of different"),
    "a mean over columns": (lambda n, x: x.mean(3), {}, "other dimensions than rows and columns"),
    "rows behind each other": (lambda n, x: torch.cat([x, x], 2), {}, "along another dimension than channels"),
    "linear by columns": (lambda n, x: n.scores(x), {"scores": lambda: linear(9)}, "where all of an image"),
    "an image in another shape": (lambda n, x: n.conv(x.reshape(-1, 4, 3, 27)), {}, "as it was computed"),
    "in other numbers": (lambda n, x: n.conv(x.half().float()), {}, "isn't among the operators"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_in_one_call_is_said(name: str) -> None:
    function, parts, words = REFUSED[name]
    network = exported(Computes(function, **{part: make() for part, make in parts.items()}), images())

    with pytest.raises(NoFloatProgram, match=words):
        program_of(network)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_networks_of_other_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(NoFloatProgram, match=f"{dtype}, on cpu, where float32"):
        program_of(exported(Residual(dtype), images(dtype=dtype)))


def test_two_inputs_are_refused() -> None:
    with pytest.raises(NoFloatProgram, match="more than one input"):
        program_of(exported(Computes(lambda n, x, y: n.conv(x) + y), images(), images()))


def test_images_of_any_size_are_refused() -> None:
    sizes = {0: BATCH, 2: torch.export.Dim("height", min=4, max=64)}
    network = torch.export.export(winograd_conv2d(4, 4).eval(), (images(),), dynamic_shapes=(sizes,)).module()

    with pytest.raises(NoFloatProgram, match=r"one C, H and W is what it can be"):
        program_of(network)


def test_training_is_refused() -> None:
    network = torch.export.export(nn.Sequential(direct(), nn.Dropout()), (images(),)).module()

    with pytest.raises(NoFloatProgram, match="is in training"):
        program_of(network)


# ---- Bytes ----------------------------------------------------------------------------------------------------------------


def bits(*numbers: float) -> list[int]:
    return list(struct.unpack(f"<{len(numbers)}i", struct.pack(f"<{len(numbers)}f", *numbers)))


def words_of(program: FloatProgram) -> list[int]:
    packed = program.to_tensor()
    assert packed.dtype == torch.uint8
    words: list[int] = packed.view(torch.int32).tolist()
    return words


HEAD = [
    0x4E464957,
    1,
    2,
    1,
    0,
    1,
    1,
    4,
    5,
    2,
    2,
    3,
]  # of one operation from (1, 4, 5) to (2, 2, 3), as all have them below
INF = math.inf
LAID_OUT: dict[str, tuple[Operation, list[int]]] = {
    "Convolution": (
        Convolution(1, (0,), -1.5, INF, weights=torch.tensor([[[[1.0, 2.0]]], [[[3.0, -4.0]]]]),
                    bias=torch.tensor([0.5, -0.5]), stride=(1, 2), padding=(3, 4), dilation=(5, 6)),
        [1, 1, 1, 0, 1, 2, 1, 2, 3, 4, 5, 6, 1, *bits(-1.5, INF, 0.5, -0.5, 1, 2, 3, -4)]),
    "WinogradConvolution": (
        WinogradConvolution(1, (0, 1), weights=torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]),
                            bias=torch.tensor([0.5, -0.5]), positions=(3, 5, 7, 15), m=2, padding=(1, 0), has_relu=True),
        [2, 1, 2, 0, 1, 2, 1, 0, 1, 2, 2, 1, 3, 5, 7, 15, *bits(0.5, -0.5, 1, 2, 3, 4)]),
    "Addition": (Addition(1, (0, 0), 0, 6), [3, 1, 2, 0, 0, *bits(0, 6)]),
    "Scaling": (
        Scaling(1, (0,), scale=torch.tensor([2.0]), shift=torch.tensor([3.0])), [4, 1, 1, 0, *bits(-INF, INF, 2, 3)]),
    "MaxPool": (
        MaxPool(1, (0,), kernel=(1, 2), stride=(3, 4), padding=(5, 6), dilation=(7, 8)),
        [5, 1, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
    "AveragePool": (
        AveragePool(1, (0,), kernel=(1, 2), stride=(3, 4), padding=(5, 6), counts_padding=False),
        [6, 1, 1, 0, 1, 2, 3, 4, 5, 6, 0]),
    "Concatenation": (Concatenation(1, (0, 0, 0)), [7, 1, 3, 0, 0, 0]),
    "Slice": (
        Slice(1, (0,), start=(0, 1, 2), stop=(1, 4, 5), step=(3, 4, 5)), [8, 1, 1, 0, 0, 1, 2, 1, 4, 5, 3, 4, 5]),
    "Padding": (Padding(1, (0,), before=(1, 2, 3), after=(4, 5, 6)), [9, 1, 1, 0, 1, 2, 3, 4, 5, 6]),
    "NearestUpsample": (NearestUpsample(1, (0,), scale=(2, 3)), [10, 1, 1, 0, 2, 3]),
    "Multiplication": (Multiplication(1, (0, 0)), [11, 1, 2, 0, 0]),
    "Activation": (Activation(1, (0,), function=Function.SILU, slope=0.5), [12, 1, 1, 0, 2, *bits(0.5)]),
}  # fmt: skip


@pytest.mark.parametrize("name", LAID_OUT)
def test_the_bytes_lie_as_they_are_described(name: str) -> None:
    operation, words = LAID_OUT[name]

    assert words_of(FloatProgram(0, 1, ((1, 4, 5), (2, 2, 3)), (operation,))) == HEAD + words


def test_every_kind_is_laid_out() -> None:
    assert {type(operation) for operation, _ in LAID_OUT.values()} == set(KINDS)
    assert bytes(FloatProgram(0, 0, ((1, 1, 1),), ()).to_tensor().tolist()).startswith(b"WIFN\x01\0\0\0")


def test_weights_may_lie_in_any_order() -> None:
    weights = torch.arange(24.0).reshape(2, 3, 2, 2)
    programs = [
        FloatProgram(0, 1, ((3, 2, 2), (2, 1, 1)), (Convolution(1, (0,), weights=given, bias=torch.zeros(2)),))
        for given in (weights, weights.contiguous(memory_format=torch.channels_last))
    ]

    assert words_of(programs[0]) == words_of(programs[1])
