"""Networks on a GPU, whose kernels are recorded and started in one call. Nearly all of this needs a GPU."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from winograd.recorded_network import RecordedNetwork

import winograd
from tests.winograd.gpu import matmul_precision, needs_gpu, two_convolutions
from winograd import count_operations


def test_what_is_not_on_a_gpu_runs_as_it_is_and_is_copied_and_stored() -> None:
    network, x = two_convolutions(), torch.randn(2, 16, 20, 20)
    recorded = RecordedNetwork(network)
    for one in (recorded, copy.deepcopy(recorded), pickle.loads(pickle.dumps(recorded))):
        with torch.inference_mode():
            torch.testing.assert_close(one(x), network(x), rtol=0, atol=0)
        assert "recorded for 0 kinds of input" in repr(one)


def prepared_on_gpu(network: torch.nn.Module, x: Tensor, **options: bool) -> winograd.PreparedNetwork:
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (x,), dynamic_shapes=({0: batch},))
    return winograd.prepare(program.module(), **options)


@pytest.fixture
def recorded() -> tuple[torch.nn.Module, winograd.PreparedNetwork]:
    """A network with Winograd convolutions on the GPU, and the same prepared."""
    network = two_convolutions()
    winograd.replace_convolutions(network, m=4)
    network.cuda()
    return network, prepared_on_gpu(network, torch.randn(2, 16, 20, 20, device="cuda"))


Recorded = tuple[torch.nn.Module, winograd.PreparedNetwork]


@needs_gpu
def test_a_recorded_network_computes_what_the_network_does_for_every_kind_of_input(recorded: Recorded) -> None:
    network, prepared = recorded
    with torch.inference_mode():
        for batch in (1, 3, 1, 8):
            x = torch.randn(batch, 16, 20, 20, device="cuda")
            for given in (x, x.contiguous(memory_format=torch.channels_last)):
                torch.testing.assert_close(prepared(given), network(given), rtol=1e-5, atol=1e-5)
    assert prepared.in_one_call
    assert prepared.why_not_in_one_call == ""
    assert "recorded for 6 kinds of input" in repr(prepared)


@needs_gpu
def test_outputs_of_a_recorded_network_are_the_callers_own(recorded: Recorded) -> None:
    network, prepared = recorded
    inputs = [torch.randn(2, 16, 20, 20, device="cuda") for _ in range(3)]
    with torch.no_grad():
        outputs = [prepared(x) for x in inputs]
        for x, output in zip(inputs, outputs, strict=True):
            torch.testing.assert_close(output, network(x), rtol=1e-5, atol=1e-5)
    with torch.inference_mode():  # what was recorded in one mode is played in the other
        torch.testing.assert_close(prepared(inputs[0]), outputs[0], rtol=0, atol=0)
    torch.testing.assert_close(prepared(inputs[0]), outputs[0], rtol=0, atol=0)


@needs_gpu
def test_w8_a_recorded_network_counts_what_it_multiplies_in_every_call(recorded: Recorded) -> None:
    network, prepared = recorded
    x = torch.randn(2, 16, 20, 20, device="cuda")
    with torch.inference_mode():
        prepared(x)
        with count_operations() as by_layer:
            network(x)
        with count_operations() as in_one_call:
            prepared(x)
            prepared(x)
    assert (in_one_call.gemms, in_one_call.multiplications) == (2 * by_layer.gemms, 2 * by_layer.multiplications)
    assert in_one_call.gemms > 0


@needs_gpu
def test_streams_and_threads_share_a_recorded_network(recorded: Recorded) -> None:
    network, prepared = recorded
    inputs = [torch.randn(2, 16, 20, 20, device="cuda") for _ in range(32)]
    with torch.inference_mode():
        expected = [network(x) for x in inputs]
    torch.cuda.synchronize()

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            output: Tensor = prepared(x)
        return output

    with ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(run, inputs))
    torch.cuda.synchronize()
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)


@needs_gpu
def test_settings_and_weights_that_change_are_seen(recorded: Recorded) -> None:
    _, prepared = recorded
    x = torch.randn(2, 16, 20, 20, device="cuda")
    with torch.inference_mode():
        before = prepared(x)
        with matmul_precision("tf32"):
            assert not torch.equal(prepared(x), before)
        assert torch.equal(prepared(x), before)
        prepared.cuda()  # weights may have moved
        assert "recorded for 0 kinds" in repr(prepared)
        torch.testing.assert_close(prepared(x), before, rtol=1e-5, atol=1e-5)
        copied = copy.deepcopy(prepared)
        torch.testing.assert_close(copied(x), before, rtol=1e-5, atol=1e-5)


@needs_gpu
def test_a_recording_inside_a_recording_is_one(recorded: Recorded) -> None:
    _, prepared = recorded
    x = torch.randn(2, 16, 20, 20, device="cuda")
    with torch.inference_mode():
        expected = prepared(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = prepared(x)
        graph.replay()
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@needs_gpu
def test_wrong_inputs_are_refused_and_right_ones_still_recorded(recorded: Recorded) -> None:
    _, prepared = recorded
    with torch.inference_mode():
        with pytest.raises(ValueError, match="exported for"):
            prepared(torch.randn(2, 16, 21, 20, device="cuda"))
        prepared(torch.randn(2, 16, 20, 20, device="cuda"))
    assert prepared.in_one_call
    assert "recorded for 1 kinds" in repr(prepared)


class LooksAtNumbers(torch.nn.Module):
    """No CUDA graph can hold what depends on numbers on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = two_convolutions()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convolutions(x)
        return y * y.abs().max().item()


@needs_gpu
def test_what_can_not_be_recorded_runs_operator_by_operator_and_says_so() -> None:
    network = LooksAtNumbers().eval()
    winograd.replace_convolutions(network, m=4)
    network.cuda()
    x = torch.randn(2, 16, 20, 20, device="cuda")
    prepared = winograd.prepare(torch.export.export(network, (x,)).module())
    with torch.inference_mode():
        for _ in range(2):
            torch.testing.assert_close(prepared(x), network(x), rtol=1e-5, atol=1e-5)
    assert not prepared.in_one_call
    assert "can't be recorded" in prepared.why_not_in_one_call


@needs_gpu
def test_a_file_is_loaded_for_a_gpu(tmp_path: Path) -> None:
    network = two_convolutions()
    winograd.replace_convolutions(network, m=4)
    x = torch.randn(2, 16, 20, 20)
    torch.export.save(torch.export.export(network, (x,)), tmp_path / "network.pt2")
    loaded = winograd.load(tmp_path / "network.pt2", device="cuda")
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x.cuda()).cpu(), network(x), rtol=1e-4, atol=1e-4)
    assert loaded.in_one_call
