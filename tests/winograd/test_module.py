"""WinogradConv2d in the place of Conv2d: same numbers, pruning, packing, copies, files, export."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from winograd.matrices import MATRICES

import winograd
from winograd import WinogradConv2d, library

pytestmark = pytest.mark.usefixtures("implementation")

EVERY_POSITION = {m: list(range(MATRICES[m].t ** 2)) for m in MATRICES}


def convolution(*, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Conv2d:
    torch.manual_seed(11)
    return nn.Conv2d(4, 8, 3, **{"padding": 1, "dtype": dtype, **options})


def image(*, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 4, 9, 11, dtype=dtype, generator=torch.Generator().manual_seed(12))


SAME = [
    {}, {"bias": False}, {"padding": 0}, {"padding": (0, 2)}, {"padding": "same"}, {"padding": "valid"}, {"groups": 2},
    {"groups": 4},
]  # fmt: skip


@pytest.mark.parametrize("m", MATRICES)
@pytest.mark.parametrize("options", SAME, ids=str)
def test_w7_module_is_the_convolution(m: int, options: dict[str, Any]) -> None:
    conv = convolution(**options)

    module = WinogradConv2d.from_conv2d(conv, m=m)

    torch.testing.assert_close(module(image()), conv(image()), atol=1e-9, rtol=0)
    torch.testing.assert_close(module(image()[0]), conv(image()[0]), atol=1e-9, rtol=0)


@pytest.mark.parametrize("m", MATRICES)
def test_w6_packed_and_unpacked_give_the_same(m: int) -> None:
    module = WinogradConv2d.from_conv2d(convolution(dtype=torch.float32), m=m, activation="relu")
    module.prune(EVERY_POSITION[m][1::3])

    with torch.inference_mode():
        packed = module(image(dtype=torch.float32))
    unpacked = module(image(dtype=torch.float32))

    torch.testing.assert_close(packed, unpacked.detach(), atol=1e-5, rtol=1e-5)
    assert unpacked.requires_grad


def test_w3_pruning_drops_the_weights_of_those_positions_in_every_kernel() -> None:
    module = WinogradConv2d.from_conv2d(convolution(), m=2)
    before = module.weights.detach().clone()

    module.prune([3, 0])
    module.prune([15])

    assert module.positions == [p for p in range(16) if p not in (0, 3, 15)]
    assert torch.equal(module.weights, before[module.positions])
    zeroed = before.clone()
    zeroed[[0, 3, 15]] = 0
    expected = winograd.conv2d(image(), zeroed, list(range(16)), 2, 1, bias=module.bias)
    torch.testing.assert_close(module(image()), expected, atol=1e-12, rtol=0)


def test_w10_groups_of_kernels_have_positions_of_their_own() -> None:
    module = WinogradConv2d.from_conv2d(convolution(), m=2, kernel_groups=2)
    before = module.weights.detach().clone()

    module.prune([0, 1], [14, 15])

    assert module.positions == [*range(2, 16), *range(14)]
    assert torch.equal(module.weights[:, :4], before[2:, :4])
    assert torch.equal(module.weights[:, 4:], before[:14, 4:])


@pytest.mark.parametrize(
    "pruned", [([16],), ([0, 1], [2]), ([0], [1], [2]), (list(range(16)),), ()],
    ids=["not-there", "different-numbers", "too-many-groups", "all", "nothing"],
)  # fmt: skip
def test_impossible_pruning_is_refused(pruned: tuple[list[int], ...]) -> None:
    module = WinogradConv2d.from_conv2d(convolution(), m=2, kernel_groups=2)

    with pytest.raises(ValueError, match="were to be pruned"):
        module.prune(*pruned)

    assert module.weights.shape[0] == 16


def test_only_given_positions_are_made() -> None:
    module = WinogradConv2d.from_conv2d(convolution(), m=2, positions=[0, 5, 10])

    assert torch.equal(module.weights, WinogradConv2d.from_conv2d(convolution(), m=2).weights[[0, 5, 10]])


REFUSED = {
    "5x5": (nn.Conv2d(1, 1, 5), "its filters are 5x5"),
    "1x3": (nn.Conv2d(1, 1, (1, 3)), "its filters are 1x3"),
    "stride": (nn.Conv2d(1, 1, 3, stride=2), r"its stride is \(2, 2\)"),
    "dilation": (nn.Conv2d(1, 1, 3, dilation=(1, 2)), r"its dilation is \(1, 2\)"),
    "reflect": (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "it pads with 'reflect'"),
    "complex": (nn.Conv2d(1, 1, 3, dtype=torch.complex64), "its weights are torch.complex64"),
    "transposed": (nn.ConvTranspose2d(1, 1, 3), "it is a ConvTranspose2d"),
}


@pytest.mark.parametrize(("conv", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_convolution_without_winograd_form_is_refused(conv: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        WinogradConv2d.from_conv2d(conv, m=2)


def test_convolution_with_hooks_is_refused() -> None:
    conv = convolution()
    conv.register_forward_hook(lambda *_: None)

    with pytest.raises(ValueError, match="it has hooks"):
        WinogradConv2d.from_conv2d(conv, m=2)


def test_unknown_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="m is 5; choose 2, 4, 6, 7"):
        WinogradConv2d.from_conv2d(convolution(), m=5)


# ---- Packed weights -----------------------------------------------------------------------------------------------------------


def double_in_place(module: WinogradConv2d) -> None:
    with torch.no_grad():
        module.weights.mul_(2)


def double_by_optimizer(module: WinogradConv2d) -> None:
    optimizer = torch.optim.SGD([module.weights], lr=1.0)
    module.weights.grad = -module.weights.detach()
    optimizer.step()


def double_by_loading(module: WinogradConv2d) -> None:
    module.load_state_dict({**module.state_dict(), "weights": module.weights.detach() * 2})


def double_by_another_parameter(module: WinogradConv2d) -> None:
    doubled = module.weights.detach() * 2
    module.weights = nn.Parameter(torch.zeros_like(doubled))  # so that the old memory is free for the next
    module.weights = nn.Parameter(doubled)


def double_by_data(module: WinogradConv2d) -> None:
    module.weights.data = module.weights.data * 2


@pytest.mark.parametrize(
    "double",
    [double_in_place, double_by_optimizer, double_by_loading, double_by_another_parameter, double_by_data],
)
def test_changed_weights_are_packed_again(double: Any) -> None:
    module = WinogradConv2d.from_conv2d(convolution(dtype=torch.float32, bias=False), m=4)
    x = image(dtype=torch.float32)
    with torch.no_grad():
        before = module(x)
        double(module)

        torch.testing.assert_close(module(x), before * 2)


def test_unchanged_weights_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = WinogradConv2d.from_conv2d(convolution(dtype=torch.float32), m=4)
    packed = []

    def pack(*arguments: Any, **options: Any) -> winograd.Packed:
        packed.append(winograd.pack_weights(*arguments, **options))
        return packed[-1]

    monkeypatch.setattr("winograd.ops.pack_weights", pack)
    with torch.inference_mode():
        for _ in range(3):
            module(image(dtype=torch.float32))

    assert len(packed) == 1


def test_pruning_after_packing_is_seen() -> None:
    module = WinogradConv2d.from_conv2d(convolution(dtype=torch.float32), m=2)
    with torch.no_grad():
        module(image(dtype=torch.float32))
        module.prune([5, 10])
        with winograd.count_operations() as counted:
            module(image(dtype=torch.float32))

    assert counted.gemms == 14


def test_weights_made_in_inference_mode_work() -> None:
    with torch.inference_mode():
        module = WinogradConv2d.from_conv2d(convolution(dtype=torch.float32), m=2)
        output = module(image(dtype=torch.float32))

    torch.testing.assert_close(
        output, convolution(dtype=torch.float32)(image(dtype=torch.float32)).detach(), atol=1e-5, rtol=0
    )


def test_gradients_of_the_input_alone_are_computed() -> None:
    module = WinogradConv2d.from_conv2d(convolution(dtype=torch.float32), m=2).requires_grad_(False)
    x = image(dtype=torch.float32).requires_grad_()

    module(x).sum().backward()

    assert x.grad is not None


# ---- Copies, files, conversion ------------------------------------------------------------------------------------------------


def pruned_module() -> WinogradConv2d:
    module = WinogradConv2d.from_conv2d(convolution(dtype=torch.float32), m=2, kernel_groups=2)
    module.prune([0, 1, 4], [14, 15, 5])
    with torch.no_grad():
        module(image(dtype=torch.float32))  # packs
    return module


def test_copy_is_independent() -> None:
    module = pruned_module()

    other = copy.deepcopy(module)
    double_in_place(other)

    assert not torch.equal(other.weights, module.weights)
    assert other.positions == module.positions
    assert other.positions is not module.positions
    torch.testing.assert_close(module(image(dtype=torch.float32)), pruned_module()(image(dtype=torch.float32)))


def test_state_dict_carries_positions() -> None:
    module = pruned_module()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = WinogradConv2d.from_conv2d(convolution(dtype=torch.float32), m=4)

    other.load_state_dict(torch.load(file, weights_only=True))

    assert (other.m, other.positions, other.kernel_groups) == (2, module.positions, 2)
    x = image(dtype=torch.float32)
    assert torch.equal(other(x), module(x))


def test_state_dict_of_other_filters_is_refused_and_changes_nothing() -> None:
    other = WinogradConv2d.from_conv2d(nn.Conv2d(4, 6, 3), m=2)
    module = pruned_module()
    before = list(module.positions)

    with pytest.raises(RuntimeError, match="size mismatch for weights"):
        module.load_state_dict(other.state_dict())

    assert module.positions == before


def test_state_dict_without_positions_is_refused() -> None:
    state = pruned_module().state_dict()
    del state["_extra_state"]

    with pytest.raises(RuntimeError, match="Missing key"):
        pruned_module().load_state_dict(state)


def test_whole_module_can_be_saved(tmp_path: Path) -> None:
    module = pruned_module()
    torch.save(module, tmp_path / "module.pt")

    loaded = torch.load(tmp_path / "module.pt", weights_only=False)

    assert torch.equal(loaded(image(dtype=torch.float32)), module(image(dtype=torch.float32)))


def test_module_can_change_its_dtype() -> None:
    module = pruned_module()

    in_float64 = copy.deepcopy(module).double()

    x = image(dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(in_float64(x.double()).float(), module(x), atol=1e-5, rtol=1e-5)


def test_module_can_go_to_another_device() -> None:
    module = pruned_module().to("meta")

    with torch.no_grad():
        assert module(torch.empty(2, 4, 9, 11, device="meta")).shape == (2, 8, 9, 11)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not-strict"])
def test_exported_module_calls_conv2d_with_its_weights(strict: bool) -> None:
    module = pruned_module()
    x = image(dtype=torch.float32)

    exported = torch.export.export(nn.Sequential(module, nn.ReLU()), (x,), strict=strict)

    calls = [node for node in exported.graph.nodes if node.target is torch.ops.winograd.conv2d.default]
    assert [node.args[2] for node in calls] == [module.positions]
    assert torch.equal(exported.state_dict["0.weights"], module.weights)
    torch.testing.assert_close(exported.module()(x), module(x).relu())


def test_module_says_what_it_is() -> None:
    module = WinogradConv2d.from_conv2d(nn.Conv2d(64, 128, 3, padding=1), m=4)
    module.prune([0, 5, 7, 10, 14, 21, 25, 28, 30])

    assert repr(module) == (
        "WinogradConv2d(64, 128, kernel_size=(3, 3), padding=(1, 1), F(4x4, 3x3), 27 of 36 positions)"
    )


def test_module_says_what_is_special_about_it() -> None:
    conv = nn.Conv2d(4, 8, 3, groups=2, bias=False)

    module = WinogradConv2d.from_conv2d(conv, m=2, kernel_groups=2, activation="relu")

    assert module.extra_repr() == (
        "4, 8, kernel_size=(3, 3), padding=(0, 0), groups=2, bias=False, activation=relu, F(2x2, 3x3), "
        "16 of 16 positions in each of 2 groups"
    )


def test_module_is_trained_like_any_other() -> None:
    module = WinogradConv2d.from_conv2d(convolution(dtype=torch.float32), m=2, positions=EVERY_POSITION[2][:12])
    target = convolution(dtype=torch.float32)(image(dtype=torch.float32)).detach()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
    losses = []

    for _ in range(20):
        optimizer.zero_grad()
        loss = (module(image(dtype=torch.float32)) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.9 * losses[0]


def test_training_mode_and_frozen_parameters_are_kept() -> None:
    conv = convolution().eval().requires_grad_(False)

    module = WinogradConv2d.from_conv2d(conv, m=2)

    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_weights_are_packed_again_for_another_implementation() -> None:
    module = pruned_module()

    with library.force(library.REFERENCE), torch.no_grad():
        output = module(image(dtype=torch.float32))

    with torch.no_grad():
        torch.testing.assert_close(output, module(image(dtype=torch.float32)), atol=1e-5, rtol=1e-5)
