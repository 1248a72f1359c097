"""What is written is read by plain torch in a fresh process, computes the same, and holds nothing but the network."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.workers.models.example_networks import Wide, image, with_zeros
from tests.workers.networks import graph_of
from workers.models.graph import ModelGraph, layers
from workers.models.read_pt2 import read_pt2
from workers.models.write_pt2 import write_pt2

RUN = """
import sys, torch
network = torch.export.load(sys.argv[1]).module()
torch.save([network(given) for given in torch.load(sys.argv[2])], sys.argv[3])
"""


@pytest.fixture(scope="module")
def wide() -> ModelGraph:
    torch.manual_seed(0)
    return graph_of(Wide().eval(), image())


def run_in_plain_torch(path: Path, *batches: Tensor) -> list[Any]:
    """The results of a process that knows nothing of Winnow."""
    folder = path.parent
    torch.save(list(batches), folder / "given")
    arguments = [str(path), str(folder / "given"), str(folder / "found")]
    subprocess.run([sys.executable, "-I", "-W", "error", "-c", RUN, *arguments], check=True)
    found: list[Any] = torch.load(folder / "found")
    return found


@pytest.mark.parametrize("pack", [False, True])
def test_plain_torch_reads_it_for_any_batch(pack: bool, wide: ModelGraph, tmp_path: Path) -> None:
    graph = with_zeros(wide, 0.5)
    write_pt2(graph, tmp_path / "n.pt2", pack_zeros=pack)
    batches = [image(1, 4, 8, 8), image(5, 4, 8, 8)]
    for found, given in zip(run_in_plain_torch(tmp_path / "n.pt2", *batches), batches, strict=True):
        assert torch.equal(found, graph(given)[0])


def test_it_is_read_back_under_the_same_names_to_the_bit(wide: ModelGraph, tmp_path: Path) -> None:
    write_pt2(wide, tmp_path / "n.pt2", pack_zeros=True)
    again = read_pt2(tmp_path / "n.pt2")
    assert [layer.name for layer in layers(again)] == [layer.name for layer in layers(wide)]
    assert again.inputs == wide.inputs
    assert again.module.state_dict().keys() == wide.module.state_dict().keys()
    assert all(
        torch.equal(tensor, wide.module.state_dict()[name]) for name, tensor in again.module.state_dict().items()
    )


def test_the_same_network_gives_the_same_bytes(wide: ModelGraph, tmp_path: Path) -> None:
    for pack in (False, True):
        for name in ("a.pt2", "b.pt2"):
            write_pt2(with_zeros(wide, 0.5), tmp_path / name, pack_zeros=pack)
        assert (tmp_path / "a.pt2").read_bytes() == (tmp_path / "b.pt2").read_bytes()


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_zeros_pay_in_bytes(sparsity: float, wide: ModelGraph, tmp_path: Path) -> None:
    weights = 4 * sum(tensor.numel() for tensor in wide.module.parameters())
    sizes = {}
    for pack in (False, True):
        write_pt2(with_zeros(wide, sparsity), tmp_path / "n.pt2", pack_zeros=pack)
        with zipfile.ZipFile(tmp_path / "n.pt2") as archive:
            sizes[pack] = sum(
                info.compress_size for info in archive.infolist() if "/data/weights/weight_" in info.filename
            )
    assert sizes[False] >= weights
    assert sizes[True] < (1 - 0.75 * sparsity) * sizes[False]


def test_weights_too_large_for_our_own_streams_are_deflated_by_zipfile(
    wide: ModelGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = with_zeros(wide, 0.9)
    write_pt2(graph, tmp_path / "ours.pt2", pack_zeros=True)
    monkeypatch.setattr("workers.models.write_pt2.LARGEST_DEFLATED", 0)
    write_pt2(graph, tmp_path / "theirs.pt2", pack_zeros=True)
    with zipfile.ZipFile(tmp_path / "ours.pt2") as ours, zipfile.ZipFile(tmp_path / "theirs.pt2") as theirs:
        assert ours.testzip() is None
        for one, other in zip(ours.infolist(), theirs.infolist(), strict=True):
            assert ours.read(one) == theirs.read(other)
            assert one.compress_size <= other.compress_size


def test_nothing_but_the_network_is_in_the_file(wide: ModelGraph, tmp_path: Path) -> None:
    write_pt2(wide, tmp_path / "n.pt2", pack_zeros=False)
    content = (tmp_path / "n.pt2").read_bytes()
    for word in (str(Path.cwd()), sys.prefix, "site-packages", "stack_trace", "File \\"):
        assert word.encode() not in content
    with zipfile.ZipFile(tmp_path / "n.pt2") as archive:
        assert all(info.date_time == (1980, 1, 1, 0, 0, 0) for info in archive.infolist())
        assert archive.read("network/data/sample_inputs/model.pt") == b""


def test_several_outputs_are_a_tuple(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.relu(x), x.mean(1)

    write_pt2(graph_of(Two(), image()), tmp_path / "n.pt2", pack_zeros=False)
    found = run_in_plain_torch(tmp_path / "n.pt2", image())[0]
    assert isinstance(found, tuple)
    assert all(torch.equal(one, other) for one, other in zip(found, Two()(image()), strict=True))


def test_a_fixed_batch_stays_fixed(tmp_path: Path) -> None:
    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0, keepdim=True)

    torch.export.save(torch.export.export(Mixing(), (image(),)), tmp_path / "n.pt2")
    graph = read_pt2(tmp_path / "n.pt2")
    write_pt2(graph, tmp_path / "again.pt2", pack_zeros=False)
    assert read_pt2(tmp_path / "again.pt2").batch_size == 2
    assert torch.equal(run_in_plain_torch(tmp_path / "again.pt2", image())[0], graph(image())[0])


def test_open_image_sizes_stay_open(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    program = torch.export.export(
        network, (image(2, 3, 8, 12),), dynamic_shapes=({0: Dim("n"), 2: Dim("h"), 3: Dim("w")},)
    )
    torch.export.save(program, tmp_path / "n.pt2")
    write_pt2(read_pt2(tmp_path / "n.pt2"), tmp_path / "again.pt2", pack_zeros=False)
    given = image(1, 3, 10, 6)
    torch.testing.assert_close(run_in_plain_torch(tmp_path / "again.pt2", given)[0], network(given).detach())
