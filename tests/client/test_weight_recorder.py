"""Statistics that a user records in a training of their own are what the job would have recorded."""

from pathlib import Path

import pytest
import torch
from torch import nn
from winnow import WeightRecorder, WinnowError

from jobs.recipe import LearningCycles, LearningStatistics
from workers.compression.finetune import Stepped
from workers.compression.weight_differences import DifferenceRecorder


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def test_a_training_loop_records_what_the_job_would(tmp_path: Path) -> None:
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    recorder = WeightRecorder(model)
    named = {"0": model[0].weight, "4": model[4].weight}  # type: ignore[index]
    job = DifferenceRecorder(named, LearningCycles(warmup_cycles=0))  # type: ignore[arg-type]
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(16, 1, 8, 8)), torch.arange(16) % 3).backward()
        optimiser.step()
        recorder.end_cycle()
        job.after_step(Stepped(named, loss=0.0, ends_epoch=True))  # type: ignore[arg-type]
    recorder.save(tmp_path / "statistics.json")
    found = LearningStatistics.model_validate_json((tmp_path / "statistics.json").read_bytes())
    assert found == job.statistics()
    assert all(change.cycle_start > 0 for cycle in found.cycles for change in cycle.values())


def test_learning_rates_are_recorded_in_every_cycle_or_in_none() -> None:
    recorder = WeightRecorder(network())
    recorder.end_cycle(learning_rate=0.1)
    recorder.end_cycle(learning_rate=0.01)
    assert recorder.statistics()["learning_rates"] == [0.1, 0.01]
    with pytest.raises(WinnowError, match="in every call of end_cycle, or in none"):
        recorder.end_cycle()
    without = WeightRecorder(network())
    without.end_cycle()
    with pytest.raises(WinnowError, match="in every call of end_cycle, or in none"):
        without.end_cycle(learning_rate=0.1)


def test_what_cannot_be_recorded_is_said() -> None:
    with pytest.raises(WinnowError, match="no convolutions or linear layers"):
        WeightRecorder(nn.ReLU())
    with pytest.raises(WinnowError, match="nothing is recorded yet"):
        WeightRecorder(network()).statistics()
