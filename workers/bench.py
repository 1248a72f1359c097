"""The uploaded network with its data: who answers what, and which answers count as right.

With labels the measure is top-1 accuracy. Where the images that are judged have none, it is the agreement with the uploaded
network.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Literal

import numpy as np
from torch import Tensor

from jobs.data_roles import Role
from jobs.errors import RecipeRefused
from jobs.folder import Compress
from jobs.inspection import ModelInspection
from jobs.report import Accuracy
from workers.compression.examples import Examples
from workers.compression.finetune import TrainingImages
from workers.compression.fixed_point_codings import Preparations
from workers.datasets.dataset import Indices
from workers.datasets.health import input_warnings, prediction_warnings
from workers.datasets.preprocess import InputTransform, input_batches
from workers.datasets.roles import Part
from workers.datasets.splits import sample_per_class
from workers.measurement.accuracy import Right, accuracy
from workers.measurement.outputs import batch_size_of, network_outputs
from workers.measurement.verify import Scores, classes
from workers.models.graph import ModelGraph

Measure = Literal["top1", "agreement"]

HEALTH_IMAGES = 200
CALIBRATION_IMAGES = 2048  # at the most; they are read as they are needed
CALIBRATION_BATCH = 64


class Bench:
    """One job's network, images and targets."""

    def __init__(
        self, job: Compress, uploaded: ModelGraph, inspection: ModelInspection, parts: Mapping[Role, Part]
    ) -> None:
        self.job = job
        self.uploaded = uploaded
        self.parts = parts
        self.transform = InputTransform(job.preprocess, uploaded.inputs[0])
        assert inspection.classes is not None, "preflight refuses networks without class scores"
        self.classes = inspection.classes
        self.uploaded_format = inspection.format
        self.preparations = Preparations()
        self.check_wanted: Callable[[], None] = _is_wanted
        judged = [parts[role] for role in ("selection", "test") if role in parts] or list(parts.values())
        self.measure: Measure = "top1" if all(part.labels is not None for part in judged) else "agreement"

    @property
    def final_role(self) -> Literal["selection", "test"]:
        """Whose images the report's figures are taken on."""
        return "test" if "test" in self.parts else "selection"

    @contextmanager
    def interruptible(self, check_wanted: Callable[[], None]) -> Iterator[None]:
        """Meanwhile `check_wanted` is called before each batch of images, and may end whatever takes them by an exception.

        What is in progress then is lost, and nothing else: whoever takes images keeps what it makes of them only when it is whole.
        """
        before, self.check_wanted = self.check_wanted, check_wanted
        try:
            yield
        finally:
            self.check_wanted = before

    def outputs(self, graph: ModelGraph, part: Part) -> Scores:
        return network_outputs(graph, self.batches(graph, part))

    def batches(self, graph: ModelGraph, part: Part) -> Iterator[Tensor]:
        return self._batches_of(part, part.indices, batch_size_of(graph))

    def _batches_of(self, part: Part, indices: Indices, batch_size: int) -> Iterator[Tensor]:
        for batch in input_batches(part.dataset, indices, self.transform, batch_size=batch_size):
            self.check_wanted()
            yield batch

    def targets(self, part: Part) -> Indices:
        """The answers that count as right: labels, or what the uploaded network says where there are none."""
        if self.measure == "top1" and part.labels is not None:
            return part.labels
        if part.role == "selection":
            return self._uploaded_on_selection
        return classes(self.outputs(self.uploaded, part))

    @cached_property
    def _uploaded_on_selection(self) -> Indices:
        return classes(self.outputs(self.uploaded, self.parts["selection"]))

    def selection_accuracy(self, graph: ModelGraph) -> Accuracy | None:
        """On the images for decisions; None if there are none."""
        if "selection" not in self.parts:
            return None
        return accuracy(self.selection_right(graph), measure=self.measure, role="selection")

    def selection_right(self, graph: ModelGraph) -> Right:
        """Which of the images for decisions are answered right."""
        part = self.parts["selection"]
        answers = self._uploaded_on_selection if graph is self.uploaded else classes(self.outputs(graph, part))
        return np.asarray(answers == self.targets(part))

    def selection_percent(self, graph: ModelGraph) -> float:
        """The same in percent, where there are images for decisions."""
        found = self.selection_accuracy(graph)
        assert found is not None
        return found.percent

    def training_images(self, answers_of: ModelGraph | None = None) -> TrainingImages:
        """What a step learns from. Where there are no labels, `answers_of` gives them, if it is given."""
        part = self.parts["train"]
        images, labels = part.dataset.images, part.labels
        if labels is None and answers_of is not None:
            labels = classes(self.outputs(answers_of, part))
        return TrainingImages(
            count=len(part),
            pick=lambda wanted: images.pick(part.indices[wanted]),
            to_input=self.transform,
            labels=labels,
        )

    def pruning_examples(self, images_per_class: int | None, *, enough: int | None = None) -> Examples:
        """The pruning data set of claim element P-4, drawn from the selection images: so many of each class, or, where none is
        said, as many as there are, up to about `enough` in all."""
        part = self.parts["selection"]
        targets = self.targets(part)
        if self.measure == "agreement" and images_per_class is None:
            # The classes are only what the network says; one that it hardly ever says must not shrink the data.
            chosen = np.sort(np.random.default_rng(self.job.seed).permutation(len(part))[:enough])
        else:
            counts = np.unique(targets, return_counts=True)[1]
            smallest = int(counts.min())
            most = smallest if enough is None else min(smallest, -(-enough // len(counts)))
            if images_per_class is not None and images_per_class > smallest:
                raise RecipeRefused(
                    f"{images_per_class} images are asked of each class, but the smallest has {smallest} among the "
                    f"{len(part)} selection images.",
                    hint=f"Ask for {smallest} at the most.",
                    role="selection",
                )
            chosen = sample_per_class(targets, images_per_class or most, self.job.seed)
        numbers, images = part.indices[chosen], part.dataset.images
        return Examples(
            pick=lambda wanted: images.pick(numbers[wanted]), to_input=self.transform, targets=targets[chosen]
        )

    def calibration_batches(self, graph: ModelGraph, images: int = CALIBRATION_IMAGES) -> Iterator[Tensor]:
        """Input of images drawn with the job's seed, to measure what reaches the layers.

        Training images where there are any: what was fitted to images can't be judged by the same ones.
        """
        part = self.parts.get("train") or self.parts["selection"]
        count = min(len(part), images)
        chosen = np.sort(np.random.default_rng(self.job.seed).permutation(len(part))[:count])
        size = graph.batch_size or min(CALIBRATION_BATCH, count)
        for batch in self._batches_of(part, part.indices[chosen], size):
            if graph.batch_size in (None, len(batch)):
                yield batch

    def health_warnings(self) -> list[str]:
        """What looks wrong about data and model together."""
        part = self.parts.get("selection") or next(iter(self.parts.values()))
        found = []
        if "test" not in self.parts:
            found.append(
                "There are no test images: the figures are of the selection images, on which decisions were made."
            )
        if self.measure == "top1" and part.role == "selection":
            found += prediction_warnings(self._uploaded_on_selection, self.targets(part), self.classes)
        elif self.measure == "agreement":
            found.append(
                "The data have no labels: accuracy is the agreement with the uploaded model, whatever that is worth."
            )
        size = self.uploaded.batch_size or HEALTH_IMAGES
        sample = next(input_batches(part.dataset, part.indices, self.transform, batch_size=size))
        if self.uploaded.batch_size in (None, len(sample)):
            found += input_warnings(self.uploaded, sample)
        return found


def _is_wanted() -> None:
    """Nothing is to be ended."""
