"""Trains a network a little, so that it recovers what an earlier step has cost. Weights that are zero stay exactly zero.

SGD with Nesterov momentum, along a cosine or at one rate, from labels or from another network's outputs (distillation).
A network in evaluation form learns batch statistics again when the `training` argument of its `aten.batch_norm` nodes is on.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional

from jobs.errors import RecipeRefused
from jobs.recipe import TrainingOptions
from workers.compression.augment import blended, flip_and_crop
from workers.compression.learning_device import CPU, name_of
from workers.compression.teacher import answers_of
from workers.datasets.dataset import Indices, Pixels
from workers.models.graph import ModelGraph, aten, copy_graph, layers, parameter, set_parameter

OnProgress = Callable[[float, str, dict[str, Any]], None]  # share done, what is going on, numbers to show
Direction = Callable[[Tensor], Tensor]  # gradient of a parameter -> what it is moved against
LossOf = Callable[[Tensor, Tensor, Indices], Tensor]  # (scores of the network, its input, which images) -> mean loss

_TRAINING = 5  # position of `training` among the arguments of aten.batch_norm
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class TrainingImages:
    """What the network learns from; images are numbered from 0 and read when they are needed."""

    count: int
    pick: Callable[[Indices], Pixels]
    to_input: Callable[[Pixels], Tensor]
    labels: Indices | None  # (count,)


@dataclass(frozen=True)
class Stepped:
    """What an optimiser step has led to."""

    weights: Mapping[str, Tensor]  # of all layers, by the layer's name; they change with the next step
    loss: float  # mean of the batch, before the step
    ends_epoch: bool


AfterStep = Callable[[Stepped], None]


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data."""

    number: int  # from 1
    loss: float  # mean over its images, while learning
    learning_rate: float  # at its end


@dataclass(frozen=True)
class FinetuneResult:
    """The trained network, or the given one bit for bit where training made it worse on the selection data."""

    graph: ModelGraph
    loss: Literal["labels", "distillation"]
    epochs: tuple[Epoch, ...]
    kept_zeros: int  # weights that were zero and still are
    accuracy_before: float | None  # percent on the selection data
    accuracy_after: float | None  # of what training led to, also if it was not kept
    is_restored: bool
    learned_on: str  # the GPU's name, or cpu

    def as_details(self) -> dict[str, Any]:
        """The step's `details` in the report, plain JSON."""
        shown = ("loss", "kept_zeros", "accuracy_before", "accuracy_after", "is_restored", "learned_on")
        return {**{name: getattr(self, name) for name in shown}, "epochs": [asdict(epoch) for epoch in self.epochs]}


def finetune(
    graph: ModelGraph,
    images: TrainingImages,
    step: TrainingOptions,
    *,
    seed: int,
    teacher: ModelGraph | None,
    evaluate: Callable[[ModelGraph], float] | None,
    on_progress: OnProgress,
    directions: Mapping[str, Direction] | None = None,
    learns_statistics: bool = True,
    after_step: AfterStep | None = None,
    device: torch.device = CPU,
) -> FinetuneResult:
    """A trained copy of `graph`. `teacher` gives the outputs to learn without labels; `evaluate` the accuracy in percent.

    `directions` make of the gradients of parameters, by name, what they are to be moved along instead. Without
    `learns_statistics`, batch normalisation goes on with the statistics that it has. `after_step` is called after every step
    of the optimiser. The network learns on `device`, and comes back to where the given one is.
    """
    loss = _chosen_loss(step, images, teacher)
    loss_of = _label_loss(images) if loss == "labels" else _distillation_loss(teacher, step, images.count, device)
    before = evaluate(graph) if evaluate else None
    learns_statistics = learns_statistics and graph.batch_size is None and images.count > 1
    student = _Student(graph, step, device, learns_statistics=learns_statistics, directions=directions or {})
    epochs = tuple(_train(student, images, step, loss_of, seed, on_progress, after_step, blends=loss == "distillation"))
    trained = student.as_graph()
    after = evaluate(trained) if evaluate else None
    is_restored = before is not None and after is not None and after < before
    return FinetuneResult(
        graph=copy_graph(graph) if is_restored else trained,
        loss=loss,
        epochs=epochs,
        kept_zeros=student.zeros(),
        accuracy_before=before,
        accuracy_after=after,
        is_restored=is_restored,
        learned_on=name_of(device),
    )


class _Student:
    """A copy of a network that can learn, with its optimiser and the zeros that it must keep."""

    def __init__(
        self,
        graph: ModelGraph,
        step: TrainingOptions,
        device: torch.device,
        *,
        learns_statistics: bool,
        directions: Mapping[str, Direction],
    ) -> None:
        self._graph = graph
        self.device = device
        self._learning = _learner(graph, device)
        self.batch_size = graph.batch_size
        self._max_gradient_norm = step.max_gradient_norm
        if learns_statistics:
            _train_batch_norm(self._learning.module)
        _end_with_logits(self._learning.module)
        self.weights = {layer.name: parameter(self._learning, layer.weight) for layer in layers(graph)}
        weights = {layer.weight for layer in layers(graph)}
        self._masks: list[tuple[Tensor, Tensor]] = []
        self._directions: list[tuple[Tensor, Direction]] = []
        decayed: list[Tensor] = []
        others: list[Tensor] = []
        for name, tensor in self._learning.module.named_parameters():
            if not tensor.is_floating_point():
                continue
            tensor.requires_grad_(True)
            (decayed if tensor.dim() > 1 else others).append(tensor)
            if name in directions:
                self._directions.append((tensor, directions[name]))
            if name in weights:
                self._masks.append((tensor, tensor.detach() == 0))
        self._optimizer = torch.optim.SGD(
            [{"params": decayed, "weight_decay": step.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=step.learning_rate,
            momentum=step.momentum,
            nesterov=step.momentum > 0,
        )

    def scores(self, batch: Tensor) -> Tensor:
        """(N, classes) for a batch, however many images the network takes at a time."""
        size = self.batch_size or len(batch)
        parts = [self._learning(_full(part))[0].reshape(len(part), -1) for part in torch.split(batch, size)]
        return torch.cat(parts)

    def learn(self, loss: Tensor, learning_rate: float) -> None:
        """One step down. Masked gradients keep momentum at zero too, so a zero can never come back."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
        for weight, direction in self._directions:
            if weight.grad is not None:
                weight.grad.copy_(direction(weight.grad))
        for weight, zero in self._masks:
            if weight.grad is not None:
                weight.grad.masked_fill_(zero, 0.0)
        torch.nn.utils.clip_grad_norm_(self._learning.module.parameters(), self._max_gradient_norm)
        self._optimizer.step()

    def zeros(self) -> int:
        return sum(int(zero.sum()) for _, zero in self._masks)

    def as_graph(self) -> ModelGraph:
        """The network in evaluation form, in the precision it came in."""
        result = copy_graph(self._graph)
        module = result.module
        for name, given in [*module.named_parameters(), *module.named_buffers()]:
            learned = parameter(self._learning, name).detach()
            set_parameter(result, name, learned.to(given.device, given.dtype).clone())
        return result


def _train(
    student: _Student,
    images: TrainingImages,
    step: TrainingOptions,
    loss_of: LossOf,
    seed: int,
    on_progress: OnProgress,
    after_step: AfterStep | None,
    *,
    blends: bool,
) -> Iterator[Epoch]:
    generator = torch.Generator().manual_seed(seed)
    size = _whole_batches(step.batch_size, student.batch_size)
    for number in range(1, step.epochs + 1):
        batches = _shuffled(images.count, size, student.batch_size, generator)
        total, seen = 0.0, 0
        for position, indices in enumerate(batches):
            done = (number - 1 + position / len(batches)) / step.epochs
            learning_rate = step.learning_rate
            if step.schedule == "cosine":
                learning_rate *= 0.5 * (1.0 + math.cos(math.pi * done))
            pixels = images.pick(indices)
            if step.augment == "flip_crop":
                pixels = flip_and_crop(pixels, generator)
            batch = images.to_input(pixels)
            if step.mix and blends:
                batch = blended(batch, generator)
            batch = batch.to(student.device)
            loss = loss_of(student.scores(batch), batch, indices)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise RecipeRefused(
                    f"Training diverged: the loss was {value} in epoch {number}, batch {position + 1}.",
                    hint=f"Lower finetune's learning_rate (it was {step.learning_rate}).",
                    step="finetune",
                )
            student.learn(loss, learning_rate)
            if after_step is not None:
                after_step(Stepped(student.weights, value, ends_epoch=position == len(batches) - 1))
            total, seen = total + value * len(indices), seen + len(indices)
            on_progress(done, f"Epoch {number} of {step.epochs}", {"loss": value, "learning_rate": learning_rate})
        yield Epoch(number, total / seen, learning_rate)
    on_progress(1.0, "Training has ended.", {})


def _chosen_loss(
    step: TrainingOptions, images: TrainingImages, teacher: ModelGraph | None
) -> Literal["labels", "distillation"]:
    loss = step.loss
    if loss == "auto":
        loss = "distillation" if images.labels is None else "labels"
    if loss == "labels" and images.labels is None:
        raise RecipeRefused("finetune is to learn from labels, but the training data have none.", role="train")
    if loss == "distillation" and teacher is None:
        raise RecipeRefused("finetune is to learn from another network's outputs, but there is none.", role="train")
    return loss


def _label_loss(images: TrainingImages) -> LossOf:
    assert images.labels is not None
    labels = torch.from_numpy(images.labels)

    def loss(scores: Tensor, _batch: Tensor, indices: Indices) -> Tensor:
        right = labels[indices]
        if int(right.max()) >= scores.shape[1]:
            raise RecipeRefused(
                f"The training data have label {int(right.max())}, but the network gives {scores.shape[1]} scores.",
                hint="Labels count from 0 and stand for the network's outputs in order.",
                role="train",
            )
        return functional.cross_entropy(scores, right.to(scores.device))

    return loss


def _distillation_loss(teacher: ModelGraph | None, step: TrainingOptions, images: int, device: torch.device) -> LossOf:
    """Hinton et al. 2015: match the softened outputs; the square keeps gradients as large as those of labels."""
    assert teacher is not None
    frozen = _learner(teacher, device)
    _end_with_logits(frozen.module)
    answers, temperature = answers_of(frozen, images * step.epochs), step.temperature

    def loss(scores: Tensor, batch: Tensor, _indices: Indices) -> Tensor:
        with torch.no_grad():
            parts = torch.split(batch, frozen.batch_size or len(batch))
            given = torch.cat([answers(_full(part)).reshape(len(part), -1) for part in parts])
        wanted = functional.log_softmax(given / temperature, dim=1)
        learned = functional.log_softmax(scores / temperature, dim=1)
        return functional.kl_div(learned, wanted, reduction="batchmean", log_target=True) * temperature**2

    return loss


def _shuffled(count: int, size: int, fixed: int | None, generator: torch.Generator) -> list[Indices]:
    order = torch.randperm(count, generator=generator).numpy()
    batches = [order[start : start + size] for start in range(0, count, size)]
    # A single image has no spread for batch statistics; a network of one batch size takes no remainder.
    smallest = 2 if fixed is None else fixed
    kept = [batch[: len(batch) - len(batch) % (fixed or 1)] for batch in batches]
    return [batch for batch in kept if len(batch) >= smallest] or [np.resize(order, fixed or count)]


def _whole_batches(wanted: int, fixed: int | None) -> int:
    return wanted if fixed is None else max(fixed, wanted // fixed * fixed)


def _train_batch_norm(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.target is aten.batch_norm.default:
            node.update_arg(_TRAINING, True)
    module.recompile()


def _end_with_logits(module: fx.GraphModule) -> None:
    """Losses want scores before a softmax; after log_softmax they are as good as before it."""
    (output,) = [node for node in module.graph.nodes if node.op == "output"]
    first, *others = output.args[0]
    if first.target is aten.softmax.int:
        output.args = ((first.args[0], *others),)
        module.recompile()


def _learner(graph: ModelGraph, device: torch.device) -> ModelGraph:
    """A copy to compute with in single precision, on `device`."""
    copy = _in_full_precision(copy_graph(graph))
    copy.module.to(device)
    return copy


def _in_full_precision(graph: ModelGraph) -> ModelGraph:
    """Half precision loses small steps, so learning happens in single precision."""
    if not any(tensor.dtype in _HALF for tensor in graph.module.state_dict().values()):
        return graph
    for node in graph.module.graph.nodes:
        if node.target is aten.to.dtype and node.args[1] in _HALF:
            node.update_arg(1, torch.float32)
    graph.module.recompile()
    for name, tensor in [*graph.module.named_parameters(), *graph.module.named_buffers()]:
        set_parameter(graph, name, _full(tensor.detach()))
    return graph


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALF else tensor
