"""Replacing the convolutions of a whole model."""

import pytest
import torch
from torch import Tensor, nn
from winograd.replace_convolutions import selection_device

import winograd
from winograd import WinogradConv2d, selection

pytestmark = pytest.mark.usefixtures("implementation")


class Network(nn.Module):
    """Convolutions of which some have a Winograd form, one used twice, and maps from 16x16 down to 2x2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(13)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.shared = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.again = self.shared
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(8, 8, 1)
        self.small = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(8, 4, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.shared(self.stem(x)).relu())
        result: Tensor = self.small(self.mix(self.down(x)))
        return result


def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(14))


@pytest.mark.parametrize("m", [2, 4])
def test_every_eligible_convolution_is_replaced(m: int) -> None:
    model = Network().eval()
    expected = model(images())

    names = winograd.replace_convolutions(model, m=m)

    assert names == ["stem.0", "shared", "again", "small.1"]
    assert all(isinstance(model.get_submodule(name), WinogradConv2d) for name in names)
    assert model.shared is model.again
    assert isinstance(model.down, nn.Conv2d)
    torch.testing.assert_close(model(images()), expected, atol=1e-4, rtol=1e-4)


def test_example_keeps_convolutions_whose_maps_are_too_small() -> None:
    """Tiles of 6x6 take 64 multiplications for a 2x2 map, the convolution itself 36."""
    model = Network()

    names = winograd.replace_convolutions(model, m=6, example=images())

    assert names == ["stem.0", "shared", "again"]


def test_example_leaves_no_trace() -> None:
    model = Network()
    model.stem[1].eval()
    before = {name: value.clone() for name, value in model.named_buffers()}

    winograd.replace_convolutions(model, m=6, example=images())

    assert [model.training, model.stem.training, model.stem[1].training] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert not model.small[1]._forward_hooks


def test_second_time_finds_nothing() -> None:
    model = Network()
    winograd.replace_convolutions(model, m=2)

    assert winograd.replace_convolutions(model, m=2) == []


def test_model_that_is_a_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match="can't be replaced in place"):
        winograd.replace_convolutions(nn.Conv2d(1, 1, 3), m=2)


def test_unknown_tile_is_refused_before_anything_is_replaced() -> None:
    model = Network()

    with pytest.raises(ValueError, match="m is 3"):
        winograd.replace_convolutions(model, m=3)

    assert isinstance(model.shared, nn.Conv2d)


def test_example_of_the_readme() -> None:
    """Replace convolutions, prune four positions of each, measure."""
    model = Network().eval()
    names = winograd.replace_convolutions(model, m=4)
    with torch.inference_mode(), winograd.count_operations() as dense:
        model(images())

    for module in {model.get_submodule(name) for name in names}:
        assert isinstance(module, WinogradConv2d)
        module.prune([7, 10, 25, 28])
    with torch.inference_mode(), winograd.count_operations() as pruned:
        model(images())

    assert pruned.gemms * 36 == dense.gemms * 32
    assert pruned.multiplications * 36 == dense.multiplications * 32


def test_without_a_tile_an_example_is_needed() -> None:
    with pytest.raises(ValueError, match="example input"):
        winograd.replace_convolutions(Network())


def test_without_a_tile_each_convolution_gets_the_one_that_selection_expects_to_be_fastest() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    example = torch.randn(1, 64, 28, 28, generator=torch.Generator().manual_seed(15))
    shape = selection.Shape(64, 64, 28, 28)
    choice = selection.select(shape, threads=torch.get_num_threads(), variants=["weights"])
    expected = model(example)

    names = winograd.replace_convolutions(model, example=example)

    assert choice.m is not None
    assert names == ["0", "2"]
    assert [model.get_submodule(name).m for name in names] == [choice.m] * 2
    torch.testing.assert_close(model(example), expected, atol=1e-4, rtol=1e-4)


def test_convolutions_stay_where_no_tile_is_exact_enough() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1))
    example = torch.randn(1, 64, 28, 28, generator=torch.Generator().manual_seed(16))

    assert winograd.replace_convolutions(model, example=example, max_relative_error=1e-9) == []
    assert isinstance(model[0], nn.Conv2d)


def test_a_gpu_is_known_by_its_architecture_and_by_what_cudnn_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert selection_device(torch.device("cuda")) == "sm_90"
    with torch.backends.cudnn.flags(allow_tf32=True):
        assert selection_device(torch.device("cuda")) == "sm_90 with TF32"
    assert selection_device(torch.device("cpu")) == "cpu"
