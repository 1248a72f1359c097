"""Thresholds from the distribution of weights: the published table of z(p), and the edges."""

import math

import pytest
import torch
from torch import Tensor

from workers.compression.thresholds import layer_distributions, pruned, with_channels_kept, z_of_rate


def normal_weights(count: int, *, sigma: float = 1.0, mean: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, generator=generator) * sigma + mean


def zero_share(weight: Tensor) -> float:
    return float((weight == 0).double().mean())


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_p1_threshold_from_the_distribution_of_a_gaussian_layer_prunes_the_rate_aimed_at(rate: float) -> None:
    weights = {"layer": normal_weights(1_000_000, sigma=0.037)}
    found = layer_distributions(weights, scope="layer", shape="normal", center=False)["layer"]
    assert zero_share(pruned(weights["layer"], found.threshold(rate))) == pytest.approx(rate, abs=0.002)


@pytest.mark.parametrize(
    ("rate", "z"),
    [
        (0.1, 0.1257), (0.2, 0.2533), (0.3, 0.3853), (0.4, 0.5244), (0.5, 0.6745), (0.6, 0.8416),
        (0.7, 1.0364), (0.8, 1.2816), (0.9, 1.6449), (0.95, 1.9600),
    ],
)  # fmt: skip
def test_p2_the_distribution_is_standard_normal(rate: float, z: float) -> None:
    assert z_of_rate(rate) == pytest.approx(z, abs=1e-4)


def test_a_laplace_layer_realises_more_than_the_normal_rate_aimed_at() -> None:
    count = 100_000
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count - 0.5
    laplace = -quantiles.sign() * torch.log1p(-2 * quantiles.abs())
    found = layer_distributions({"layer": laplace}, scope="layer", shape="normal", center=False)["layer"]
    assert zero_share(pruned(laplace, found.threshold(0.5))) == pytest.approx(
        1 - math.exp(-math.sqrt(2) * 0.6745), abs=1e-3
    )


def test_the_empirical_quantile_realises_the_rate_exactly() -> None:
    weights = {"layer": normal_weights(1000) ** 3}
    found = layer_distributions(weights, scope="layer", shape="empirical", center=False)["layer"]
    assert [zero_share(pruned(weights["layer"], found.threshold(rate))) for rate in (0.1, 0.35, 0.9)] == [
        0.1,
        0.35,
        0.9,
    ]


def test_scope_layer_prunes_every_gaussian_layer_alike_and_scope_global_the_small_weights() -> None:
    weights = {"small": normal_weights(100_000, sigma=0.01), "large": normal_weights(100_000, sigma=1.0)}
    rates = {}
    for scope in ("layer", "global"):
        found = layer_distributions(weights, scope=scope, shape="normal", center=False)
        rates[scope] = [zero_share(pruned(weights[name], found[name].threshold(0.3))) for name in weights]
    assert rates["layer"] == pytest.approx([0.3, 0.3], abs=0.01)
    assert rates["global"][0] == 1.0
    assert rates["global"][1] < 0.3


def test_a_global_threshold_is_one_number_for_all_layers() -> None:
    weights = {"small": normal_weights(1000, sigma=0.01), "large": normal_weights(1000)}
    found = layer_distributions(weights, scope="global", shape="empirical", center=False)
    assert found["small"].threshold(0.4) == found["large"].threshold(0.4)


def test_center_measures_from_the_mean_of_the_layer() -> None:
    shifted = normal_weights(100_000, mean=5.0)
    found = layer_distributions({"layer": shifted}, scope="layer", shape="normal", center=True)["layer"]
    after = pruned(shifted, found.threshold(0.5), found.centre)
    assert zero_share(after) == pytest.approx(0.5, abs=0.01)
    assert not ((after != 0) & ((after - 5.0).abs() < 0.6)).any()


def test_the_distribution_of_a_sparse_layer_is_that_of_its_nonzero_weights() -> None:
    dense = normal_weights(10_000)
    sparse = torch.cat([dense, torch.zeros(90_000)])
    of_both = layer_distributions({"d": dense, "s": sparse}, scope="layer", shape="normal", center=False)
    assert of_both["s"].sigma == of_both["d"].sigma


def test_weights_that_stay_keep_their_bits_and_those_at_the_threshold_stay() -> None:
    weight = torch.tensor([-0.5, 0.25, -0.125, 0.1, 0.0])
    assert pruned(weight, 0.125).tolist() == [-0.5, 0.25, -0.125, 0.0, 0.0]


def test_half_precision_weights_are_compared_without_rounding() -> None:
    weight = torch.tensor([0.1, 0.2], dtype=torch.float16)
    just_above = float(weight[0]) + 1e-9
    after = pruned(weight, just_above)
    assert after.dtype == torch.float16
    assert after[0] == 0
    assert after[1] == weight[1]


def test_every_channel_keeps_its_largest_weight() -> None:
    weight = torch.tensor([[0.1, -0.3], [2.0, 3.0], [0.0, 0.0]])
    after = with_channels_kept(weight, pruned(weight, 1.0), kind="linear", groups=1)
    assert torch.equal(after, torch.tensor([[0.0, -0.3], [2.0, 3.0], [0.0, 0.0]]))


def test_output_channels_of_a_grouped_transposed_convolution_are_kept() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 3, 2, 2, generator=generator)  # 2 groups of 2 inputs and 3 outputs each
    after = with_channels_kept(weight, torch.zeros_like(weight), kind="conv_transpose2d", groups=2)
    kept = after.reshape(2, 2, 3, 4) != 0
    assert (kept.sum(dim=(1, 3)) == 1).all()
    assert torch.equal(after[after != 0], weight[after != 0])
