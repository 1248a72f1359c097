"""Counts right answers when one layer's weights change, re-running only what depends on that layer.

Three things make a probe cheap, and none changes its outcome:

* **Suffix.** Values that do not depend on the probed layer are those of the current network; they are kept (`ActivationStore`)
  or computed once a batch, and only the layer's descendants run with the new weights.
* **Fragile images first.** Images are ordered once by the margin of the uploaded network, wrong answers first, so that what a
  change breaks shows in the first batches.
* **Race.** A probe ends as soon as the answers still to come can't lift it to `at_least`.

Batches are the same for every probe, whatever is kept and whoever asks, so the same weights always give the same answers.
Activations run in channels-last order, in the network's own precision: about twice as fast for convolutions on a CPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workers.compression.activation_store import ActivationStore, Value, bytes_of
from workers.compression.evaluator import Probe, ProbingCost
from workers.compression.examples import Examples
from workers.compression.program import Plan, compile_graph, multiply_adds
from workers.datasets.dataset import Indices
from workers.models.graph import Layer, ModelGraph, layers, parameter

# Measured on ResNet-20 with AVX-512: batches of 32 are as fast as larger ones while activations stay in the processor's caches,
# and a race can end sooner.
MAX_BATCH_SIZE = 100
LARGEST_VALUE_BYTES = 2 * 2**20

Verdicts = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Batch:
    """Images that always run together. The last one is filled up with repeats where the network takes one size only."""

    number: int
    indices: Indices
    images: int  # without the repeats
    targets: Tensor  # (images,)


@dataclass(frozen=True)
class _Suffix:
    """What a probe of one layer needs: its weight's numbers, the values to start from, what changes, and how."""

    weight_numbers: frozenset[int]
    frontier: frozenset[int]
    descendants: frozenset[int]
    plan: Plan


@dataclass(frozen=True)
class _SizesOfImage:
    """What one image takes: multiply-adds by operation, bytes by value."""

    multiply_adds: dict[int, int]
    value_bytes: dict[int, int]


class SuffixEvaluator:
    """An `Evaluator` over a network of one input and its pruning data; the first output holds the scores of the classes."""

    @torch.inference_mode()
    def __init__(self, graph: ModelGraph, examples: Examples, *, cache_mib: int) -> None:
        self._examples = examples
        self._program = compile_graph(graph.module)
        (self._input,), self._output = self._program.inputs, self._program.outputs[0]
        self._parameters = {
            number: _channels_last(parameter(graph, name).detach()) for number, name in self._program.parameters.items()
        }
        self._suffixes = {layer.weight: self._suffix(layer.weight) for layer in layers(graph)}
        self._starts = frozenset[int]().union(*(suffix.frontier for suffix in self._suffixes.values()))
        self._whole = self._program.plan(frozenset({self._output}), frozenset({self._input}))
        self._plans: dict[tuple[frozenset[int], ...], Plan] = {}

        self._sizes = self._sizes_of_image(graph.batch_size or 1)
        self._batch_size = graph.batch_size or _batch_size(self._sizes)
        self._batches = self._in_order_of_fragility(fill_up=graph.batch_size is not None)
        scores = [self._scores(batch) for batch in self._batches]
        self._uploaded = [_verdicts(of_batch, batch) for of_batch, batch in zip(scores, self._batches, strict=True)]
        self._uploaded_log = [
            _log_softmax(of_batch, batch) for of_batch, batch in zip(scores, self._batches, strict=True)
        ]

        self._store = ActivationStore(cache_mib * 2**20)
        starts_bytes = self._batch_size * sum(self._sizes.value_bytes[number] for number in self._starts)
        self._store.reserve_head(len(self._batches), batch_bytes=starts_bytes)
        self._multiply_adds = self._probes = self._ended_early = self._seen = 0

    @property
    def images(self) -> int:
        return len(self._examples)

    @property
    def correct(self) -> int:
        return sum(int(verdicts.sum()) for verdicts in self._uploaded)

    @torch.inference_mode()
    def probe(self, layer: Layer, weight: Tensor, *, at_least: int) -> Probe:
        suffix = self._suffixes[layer.weight]
        candidate = dict.fromkeys(suffix.weight_numbers, _channels_last(weight))
        correct = seen = lost = gained = 0
        divergence = 0.0
        for batch, before, log_before in zip(self._batches, self._uploaded, self._uploaded_log, strict=True):
            scores = self._scores_with(batch, suffix, candidate)
            verdicts = _verdicts(scores, batch)
            divergence += float((log_before.exp() * (log_before - _log_softmax(scores, batch))).sum())
            correct += int(verdicts.sum())
            lost += int((before & ~verdicts).sum())
            gained += int((verdicts & ~before).sum())
            seen += batch.images
            if correct + (self.images - seen) < at_least:
                break
        self._probes += 1
        self._seen += seen
        self._ended_early += seen < self.images
        return Probe(correct + self.images - seen, seen == self.images, seen, lost, gained, divergence / seen)

    def expect(self, layer: Layer) -> None:
        self._store.focus_on(self._suffixes[layer.weight].frontier)

    def accept(self, layer: Layer, weight: Tensor) -> None:
        suffix = self._suffixes[layer.weight]
        self._parameters.update(dict.fromkeys(suffix.weight_numbers, _channels_last(weight)))
        self._store.drop(suffix.descendants)

    def cost(self) -> ProbingCost:
        one_image = sum(self._sizes.multiply_adds.values())
        unseen = self._probes * self.images - self._seen
        return ProbingCost(
            probes=self._probes,
            ended_early=self._ended_early,
            image_evaluations=self._seen,
            image_evaluations_saved_by_racing=unseen,
            multiply_adds=self._multiply_adds,
            multiply_adds_saved_by_cache=self._seen * one_image - self._multiply_adds,
            multiply_adds_saved_by_racing=unseen * one_image,
            multiply_adds_of_one_pass=self.images * one_image,
            multiply_adds_before_probing=2 * self.images * one_image,
        )

    def _suffix(self, weight: str) -> _Suffix:
        numbers = self._program.numbers_of(weight)
        wanted = frozenset({self._output})
        frontier = self._program.frontier(numbers, wanted)
        return _Suffix(numbers, frontier, self._program.descendants(numbers), self._program.plan(wanted, frontier))

    def _scores_with(self, batch: _Batch, suffix: _Suffix, candidate: Mapping[int, Tensor]) -> Tensor:
        """(N, classes) of a batch with other weights in one layer."""
        values: dict[int, Any] = {**self._parameters, **self._current(batch, suffix.frontier), **candidate}
        self._run(suffix.plan, values, batch)
        return self._output_of(values, batch)

    def _current(self, batch: _Batch, wanted: frozenset[int]) -> dict[int, Value]:
        """These values of the current network: kept ones, or computed from the nearest kept ones."""
        held = self._store.held(batch.number)
        if not wanted <= held.keys():
            keep = self._store.worth_keeping(batch.number, self._starts)
            plan = self._plan_from(frozenset(held), wanted, keep)
            values: dict[int, Any] = {**self._parameters, **held}
            if self._input not in held and (self._input in wanted or plan.reads(self._input)):
                values[self._input] = _channels_last(self._examples.inputs(batch.indices))
            self._run(plan, values, batch)
            for number in keep & (values.keys() - held.keys()):
                self._store.offer(batch.number, number, values[number])
            held = values
        return {number: held[number] for number in wanted}

    def _plan_from(self, held: frozenset[int], wanted: frozenset[int], keep: frozenset[int]) -> Plan:
        key = (held, wanted, keep)
        if key not in self._plans:
            self._plans[key] = self._program.plan(wanted, held | {self._input}, wanted | keep | {self._input})
        return self._plans[key]

    def _run(self, plan: Plan, values: dict[int, Any], batch: _Batch) -> None:
        plan.run(values)
        cost = self._sizes.multiply_adds
        self._multiply_adds += batch.images * sum(cost[operation.number] for operation in plan.operations)

    def _scores(self, batch: _Batch) -> Tensor:
        """(N, classes) of a batch by the network as it was uploaded."""
        values: dict[int, Any] = {**self._parameters, self._input: _channels_last(self._examples.inputs(batch.indices))}
        self._whole.run(values)
        return self._output_of(values, batch)

    def _output_of(self, values: Mapping[int, Any], batch: _Batch) -> Tensor:
        scores = values[self._output]
        assert isinstance(scores, Tensor)
        return scores.reshape(len(batch.indices), -1)

    def _in_order_of_fragility(self, *, fill_up: bool) -> list[_Batch]:
        """Batches by ascending margin of the right class over the best other one: wrong answers first."""
        stored = self._cut(np.arange(self.images), fill_up=fill_up)
        margins = torch.cat([_margins(self._scores(batch), batch) for batch in stored])
        return self._cut(margins.argsort(stable=True).numpy(), fill_up=fill_up)

    def _cut(self, order: Indices, *, fill_up: bool) -> list[_Batch]:
        size = self._batch_size
        batches = []
        for number, start in enumerate(range(0, len(order), size)):
            chosen = order[start : start + size]
            filled = np.resize(chosen, size) if fill_up else chosen
            batches.append(_Batch(number, filled, len(chosen), torch.from_numpy(self._examples.targets[chosen])))
        return batches

    def _sizes_of_image(self, batch_size: int) -> _SizesOfImage:
        """Measured by running one small batch with every value kept."""
        images = self._examples.inputs(np.resize(np.arange(self.images), batch_size))
        values: dict[int, Any] = {**self._parameters, self._input: _channels_last(images)}
        work = {}
        for operation in self._program.operations:
            values[operation.number] = operation.run(values)
            work[operation.number] = multiply_adds(operation, values) // batch_size
        sizes = {number: bytes_of(value) // batch_size for number, value in values.items()}
        return _SizesOfImage(work, {number: size for number, size in sizes.items() if number not in self._parameters})


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def _batch_size(sizes: _SizesOfImage) -> int:
    largest = max(sizes.value_bytes.values())
    return max(1, min(MAX_BATCH_SIZE, LARGEST_VALUE_BYTES // max(1, largest)))


def _verdicts(scores: Tensor, batch: _Batch) -> Verdicts:
    """(images,) whether the class with the highest score is the right one."""
    verdicts: Verdicts = (scores.argmax(dim=1)[: batch.images] == batch.targets).numpy()
    return verdicts


def _log_softmax(scores: Tensor, batch: _Batch) -> Tensor:
    """(images, classes), in single precision."""
    return scores[: batch.images].float().log_softmax(dim=1)


def _margins(scores: Tensor, batch: _Batch) -> Tensor:
    """(images,) score of the right class less that of the best other; lowest where there is no such class or no number."""
    scores = scores[: batch.images].to(torch.float32, copy=True)
    known = (batch.targets >= 0) & (batch.targets < scores.shape[1])
    right = batch.targets.clamp(0, scores.shape[1] - 1).unsqueeze(1)  # (images, 1)
    of_right = scores.gather(1, right).squeeze(1)
    of_others = scores.scatter(1, right, -torch.inf).amax(dim=1)
    return torch.where(known, of_right - of_others, -torch.inf).nan_to_num(nan=-torch.inf)
