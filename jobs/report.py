"""The report of a finished job: numbers measured on the very files that are delivered. Within a version fields are only added."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Accuracy(Part):
    """Top-1 accuracy, or agreement with the uploaded model where there are no labels."""

    measure: Literal["top1", "agreement"]
    role: Literal["selection", "test"]
    images: int
    correct: int
    percent: float


class AccuracyChange(Part):
    """After minus before on the same images. The interval is paired: it comes from the images whose verdict flipped."""

    change_pp: float
    interval_pp: tuple[float, float] = Field(description="95 % interval of the change, in percentage points.")
    lost: int = Field(description="Images right before and wrong after.")
    gained: int = Field(description="Images wrong before and right after.")
    p_value: float = Field(description="Exact McNemar test.")


class Latency(Part):
    """Wall time of one inference, in alternating runs with the uploaded model."""

    runtime: str = Field(
        description="onnxruntime, torch, or torch with winograd.load, which prepares networks with Winograd convolutions."
    )
    device: str
    threads: int
    batch_size: int
    runs: int
    median_ms: float
    p10_ms: float
    p90_ms: float


class Comparison(Part):
    """The delivered file by turns with the uploaded model, each in a runtime of its own."""

    runtime: str = Field(description="Of the uploaded model.")
    delivered_runtime: str | None = Field(default=None, description="Of the delivered file.")
    threads: int
    batch_size: int
    rounds: int
    delivered_ms: float = Field(description="Median.")
    original_ms: float = Field(description="Median.")
    speedup: float = Field(description="Ratio of the medians, original over delivered.")
    speedup_interval: tuple[float, float] = Field(description="95 % bootstrap interval of that ratio.")


class ExecutedOperations(Part):
    """What the Winograd convolutions of the file executed while it ran; counted in their loops, not worked out."""

    gemms: int = Field(description="Matrix multiplications in one run: one for each kept position and group.")
    multiplications: int = Field(description="Of one image, inside of those.")


class MemoryUse(Part):
    """Of C source on a microcontroller, its stack and its code apart."""

    flash_bytes: int = Field(description="Constants: weights, biases, lengths.")
    ram_bytes: int = Field(description="Static: all tensors between layers, and what a layer needs besides.")


class IntegerNetworkReport(Part):
    """A network in integers, run in integers only on the images of the figures, against its float simulation."""

    images: int
    differing_logits: int = Field(description="That aren't exactly the simulation's; none may be.")
    overflows: int = Field(description="Accumulators that 32 bits would not have held; none may be.")
    activation_bits: int
    weight_bits: int
    input_signed: bool
    input_lengths: tuple[int, ...] = Field(
        description="Fractional length of each channel: integer = value * 2**length."
    )
    logit_length: int = Field(description="Score = logit / 2**logit_length.")


class FileSize(Part):
    bytes: int
    deflated_bytes: int = Field(description="After zip compression, for comparison.")


class DeliveredFile(Part):
    """One artifact, reloaded in a fresh process by the runtime that a user would use, and measured there."""

    name: str
    format: Literal["onnx", "pt2", "pt2_standard", "pt2_integers", "c"]
    sha256: str
    size: FileSize
    accuracy: Accuracy | None
    change: AccuracyChange | None
    max_abs_difference: float = Field(description="Of the outputs, against the network in memory.")
    agreement_percent: float | None = Field(description="Images with the same class as the network in memory.")
    latency: Latency | None
    latency_original: Latency | None = Field(description="The uploaded model in the same alternating runs.")
    speedup: float | None = Field(description="Ratio of the medians, original over delivered.")
    speedup_interval: tuple[float, float] | None = Field(
        default=None, description="95 % bootstrap interval of that ratio."
    )
    comparisons: tuple[Comparison, ...] = Field(
        default=(),
        description="With the original in each runtime, on one and on all threads; of Winograd networks and of pt2_integers.",
    )
    executed: ExecutedOperations | None = Field(
        default=None, description="Of files whose Winograd convolutions are run by an operator that counts."
    )
    memory: MemoryUse | None = Field(default=None, description="Of C source.")
    notes: tuple[str, ...] = ()


class Totals(Part):
    """Size and work of a network, before or after."""

    parameters: int
    nonzeros: int
    weight_bits: int
    multiplications: int = Field(description="Of one image, as a dense network does them.")
    effective_multiplications: int = Field(description="Of one image, without those by zero weights.")
    dense_bytes: int
    bitmap_bytes: int = Field(description="One bit a weight and the nonzero values.")
    csr_bytes: int = Field(description="Compressed sparse rows: values, column indices, row starts.")


class LayerReport(Part):
    """One layer, before and after."""

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    weights: int
    nonzeros: int
    sparsity: float
    bits: int
    macs: int
    eligible: dict[str, str | None] = Field(description="By step kind: null if eligible, else the reason why not.")


class StepReport(Part):
    """What a step has to say of itself. `details` follows the schema of the step kind (docs/methods.md)."""

    kind: str
    seconds: float
    accuracy_before: Accuracy | None
    accuracy_after: Accuracy | None
    predicted_change_pp: float | None = None
    measured_change_pp: float | None = None
    details: dict[str, Any]
    warnings: tuple[str, ...] = ()


class DataReport(Part):
    role: str
    sha256: str | None
    images: int
    class_counts: dict[str, int]
    origin: str = Field(description="How these images were chosen: the whole dataset, or which part of which split.")
    warnings: tuple[str, ...] = ()


class Provenance(Part):
    """What is needed to repeat the job. Only wall and CPU times may differ between two runs of the same request."""

    input_sha256: str
    seed: int
    recipe: list[dict[str, Any]]
    versions: dict[str, str]
    device: str
    threads: int
    sandbox: dict[str, Any]
    wall_seconds: dict[str, float] = Field(description="By phase.")
    cpu_seconds: float


class Candidate(Part):
    """One recipe that a search tried, measured on the selection images but for those that are kept back to confirm."""

    number: int
    recipe: list[dict[str, Any]]
    predicted_drop_pp: float | None = Field(description="What `drop_bound_pp` was predicted to be, cheaply.")
    drop_pp: float = Field(description="Loss of accuracy against the uploaded model, on the selection images.")
    drop_bound_pp: float = Field(
        description="Loss that isn't exceeded with the goal's confidence; the limit is held against it."
    )
    bytes: int = Field(description="Of the file that the target runtime opens.")
    latency_ms: float | None = Field(
        description="On the target: the original's median, over how many times faster the candidate was by turns with it."
    )
    operations: int = Field(description="Bit operations of one image.")
    seconds: float
    meets_goal: bool = Field(
        description="Whether it keeps to the goal: on the selection images that candidates are compared on and, where there are "
        "confirming images, confirmed on these."
    )
    confirming_drop_pp: float | None = Field(
        default=None,
        description="Loss on the confirming images; null where there are none, or the limit wasn't kept on the others.",
    )
    confirming_drop_bound_pp: float | None = Field(
        default=None,
        description="Loss that isn't exceeded with the goal's confidence, told from the confirming images alone.",
    )


class SearchReport(Part):
    """What a search for a goal has tried, and what it chose from."""

    goal: dict[str, Any]
    ended: Literal["exhausted", "deadline", "finished"] = Field(
        description="Whether everything was tried, time was up, or somebody asked for the best so far."
    )
    seconds: float
    original: Candidate = Field(description="The uploaded model itself, as Winnow writes it.")
    candidates: tuple[Candidate, ...]
    front: tuple[int, ...] = Field(
        description="Numbers of candidates that no other beats in accuracy and what is minimised."
    )
    delivered: int = Field(description="Number of the one that was delivered; 0 is the uploaded model.")
    abandoned: tuple[str, ...] = Field(default=(), description="What could not be tried, and why.")
    selection_images: int | None = Field(default=None, description="That candidates were compared on.")
    confirming_images: int = Field(
        default=0, description="Selection images that were kept back to confirm the choice; 0 where there are too few."
    )
    unconfirmed: tuple[int, ...] = Field(
        default=(),
        description="Numbers of candidates that kept to the goal where they were compared, but not for sure on the "
        "confirming images.",
    )


class Verdict(Part):
    """The job in one sentence, and whether the limits were kept."""

    sentence: str
    limits_kept: bool
    missed: tuple[str, ...] = Field(default=(), description="Each missed limit, and by how much.")


class Report(Part):
    version: Literal[1] = 1
    verdict: Verdict
    measure: Literal["top1", "agreement", "none"]
    accuracy_before: Accuracy | None
    accuracy_after: Accuracy | None
    change: AccuracyChange | None
    before: Totals
    after: Totals
    original_size: FileSize
    files: tuple[DeliveredFile, ...]
    steps: tuple[StepReport, ...]
    layers: tuple[LayerReport, ...]
    integers: IntegerNetworkReport | None = Field(default=None, description="Of networks that end in integers.")
    search: SearchReport | None = Field(default=None, description="Of jobs with a goal.")
    data: tuple[DataReport, ...]
    provenance: Provenance
    warnings: tuple[str, ...] = ()
