"""The steps of a recipe, with all their options.

The descriptions below become the API's documentation (`GET /v1/steps`, OpenAPI); the bounds are checked at the edge,
and everything behind it trusts them.
"""

from math import ceil
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

LayerName = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class Schema(BaseModel):
    """A frozen value that refuses unknown fields, so that a misspelt option is an error and not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Stop(Schema):
    """When pruning ends before every layer has been the subject. Whichever rule is met first ends it."""

    layers: int | None = Field(
        default=None, ge=1, le=100_000, description="End a round after this many layers were pruned (P-10)."
    )
    target_accuracy: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="End when the accuracy, in percent, has come down to this value; it is never left behind (P-11).",
    )
    target_sparsity: float | None = Field(
        default=None, gt=0, lt=1, description="End when this part of all prunable weights is zero."
    )


class PruneWeights(Schema):
    """Method P (US12045723B2): prune weights by thresholds from their distribution, layer by layer, where the predicted
    loss of accuracy is smallest, until the accuracy has fallen by the given limit. Never trains."""

    kind: Literal["prune_weights"]
    max_drop_pp: float = Field(
        default=1.0, gt=0, le=100, description="Accuracy that may be spent, in percentage points on the selection data."
    )
    reference: Literal["baseline", "layer_start", "progressive"] = Field(
        default="progressive",
        description="What a drop is measured against: the uploaded model (baseline), the model as it was when the layer "
        "became the subject (layer_start), or the uploaded model with a limit that grows with the weights done (progressive).",
    )
    rounds: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="How often all layers have their turn, each round with an equal part of the budget on top of the last; "
        "layers that are still rising then go on. Default: a round for every 0.25 percentage points of the budget, "
        "at least 1 and at most 8.",
    )
    steps_per_round: int = Field(
        default=2,
        ge=1,
        le=1000,
        description="How many thresholds a layer is tried with in a round, if there is more than one round.",
    )
    scope: Literal["layer", "global"] = Field(
        default="global",
        description="One threshold for all layers from the distribution of all weights, or one per layer from its own.",
    )
    distribution: Literal["normal", "empirical"] = Field(
        default="normal",
        description="Threshold from the standard normal distribution (the patent's), or the exact quantile.",
    )
    first_rate: float = Field(
        default=0.20, gt=0, lt=1, description="Pruning rate that a layer's first threshold aims at."
    )
    rate_step: float = Field(
        default=0.05, gt=0, lt=1, description="How much the rate grows when the same layer is pruned again."
    )
    max_rate: float = Field(default=0.99, gt=0, lt=1, description="Rate at which a layer is left alone for good.")
    center: bool = Field(default=False, description="Measure weights from their mean instead of from zero.")
    keep_crossing: bool = Field(
        default=False, description="Keep the candidate that crosses the limit instead of rolling it back."
    )
    keep_channel: bool = Field(default=False, description="Keep at least one weight in every output channel.")
    fold_before: bool = Field(
        default=False, description="Fold batch normalisation into the weights before thresholds are taken."
    )
    stop: Stop = Field(default=Stop(), description="Rules that end the pruning early.")
    exclude: tuple[LayerName, ...] = Field(default=(), max_length=10_000, description="Layers to leave as they are.")
    images_per_class: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Size of the pruning data set: this many images drawn at random from each class of the selection data. "
        "Default: as many as the smallest class has.",
    )
    probing: Literal["race", "full", "lazy"] = Field(
        default="race",
        description="race: a probe ends once its layer can no longer be chosen; the choice is the same as with full. "
        "full: every probe sees every image. lazy: old sensitivities are reused while they stay the best (not the patent's).",
    )
    cache_mib: int = Field(
        default=1024, ge=0, le=1_048_576, description="Memory for activations kept between probes, in MiB."
    )

    @property
    def rounds_to_run(self) -> int:
        """`rounds`, or what it is by default."""
        return self.rounds or min(8, ceil(4 * self.max_drop_pp))

    @model_validator(mode="after")
    def _rates_are_ordered(self) -> "PruneWeights":
        if self.first_rate > self.max_rate:
            raise ValueError("first_rate must not be above max_rate")
        return self


class TrainingOptions(Schema):
    """How a network is trained: SGD with Nesterov momentum."""

    epochs: int = Field(default=2, ge=1, le=1000, description="Passes over the training data.")
    learning_rate: float = Field(default=0.01, gt=0, le=10, description="Rate, or its peak along the schedule.")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="Whether the rate falls to zero along a cosine, step by step, or stays."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Nesterov momentum of the SGD optimiser.")
    weight_decay: float = Field(default=1e-4, ge=0, le=1, description="L2 penalty on convolution and linear weights.")
    batch_size: int = Field(default=128, ge=1, le=65_536, description="Images per optimiser step.")
    loss: Literal["auto", "labels", "distillation"] = Field(
        default="auto",
        description="Learn from labels, or from the uploaded model's own outputs; auto takes labels where there are any.",
    )
    temperature: float = Field(default=4.0, gt=0, le=100, description="Softening of the outputs for distillation.")
    augment: Literal["none", "flip_crop"] = Field(
        default="none", description="Random horizontal flips and shifted crops of the images."
    )
    mix: bool = Field(
        default=False,
        description="Where the network learns from the uploaded model's outputs: blend images in random pairs. The uploaded model "
        "is sure of images that it was trained on, and there is little to learn from that; of blends it isn't.",
    )
    max_gradient_norm: float = Field(
        default=1.0,
        gt=0,
        description="Longer gradients are shortened to this norm, so that training bears higher rates.",
    )


class Finetune(TrainingOptions):
    """Train the model a little to recover accuracy. Zeros made by earlier steps stay exactly zero."""

    kind: Literal["finetune"]


class RecoveryTraining(TrainingOptions):
    """Training that makes up for what a step has taken from a network. Batch normalisation keeps its statistics."""

    learning_rate: float = Field(default=0.001, gt=0, le=10, description="Rate, or its peak along the schedule.")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="L2 penalty on weights, of whichever domain.")
    loss: Literal["auto", "labels", "distillation"] = Field(
        default="distillation",
        description="Learn from the uploaded model's own outputs, or from labels; auto takes labels where there are any.",
    )
    augment: Literal["none", "flip_crop"] = Field(
        default="flip_crop", description="Random horizontal flips and shifted crops of the images."
    )
    max_gradient_norm: float = Field(default=3.0, gt=0, description="Longer gradients are shortened to this norm.")


class WinogradTraining(RecoveryTraining):
    """Training that makes up for pruned positions (W-9); they take no part in it, and never come back.

    Batch normalisation keeps its statistics.
    """

    learning_rate: float = Field(default=0.004, gt=0, le=10, description="Rate, or its peak along the schedule.")
    domain: Literal["winograd", "spatial"] = Field(
        default="winograd",
        description="What is learned: the weights of the kept positions themselves, or the 3x3 filters that they are "
        "transformed from in every step.",
    )


class PruneWinograd(Schema):
    """Method W (US11521039B2): compute 3x3 convolutions in the Winograd domain, without the positions that a whole group of
    kernels can do without; then train the network without them, and prune on, as long as accuracy allows."""

    kind: Literal["prune_winograd"]
    max_drop_pp: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="Accuracy that may be spent, in percentage points on the selection data; a round that spends more is "
        "taken back.",
    )
    tile: Literal["auto", "fastest", 2, 4, 6] = Field(
        default="auto",
        description="Outputs of a tile in each direction: F(2x2), F(4x4) or F(6x6); auto takes, for each layer, the one "
        "with the fewest multiplications on its image; fastest the one that winograd's table of measured times, and its cost "
        "model between them, foretell to be the fastest on the target, and leaves a layer alone where direct convolution is.",
    )
    select: Literal["allocate", "count", "rate", "threshold"] = Field(
        default="allocate",
        description="allocate: where they cost the least accuracy for what they save. count, rate: the same in "
        "every layer. threshold: all positions whose score is below it.",
    )
    saves: Literal["multiplications", "time"] = Field(
        default="multiplications",
        description="What allocate holds the loss of accuracy against: multiplications saved, or the time saved on the target, by "
        "winograd's table and cost model.",
    )
    count: int | None = Field(default=None, ge=0, le=63, description="Positions to prune in every layer (count).")
    rate: float | None = Field(default=None, ge=0, lt=1, description="Part of the positions to prune (rate).")
    rates: dict[LayerName, Annotated[float, Field(ge=0, lt=1)]] = Field(
        default={}, max_length=10_000, description="Parts of the positions to prune, by layer; they go before all else."
    )
    threshold: float | None = Field(
        default=None, gt=0, description="Positions with a lower score are pruned (threshold)."
    )
    threshold_unit: Literal["score", "mean"] = Field(
        default="mean", description="Whether the threshold is a score, or a multiple of the mean score of the layer."
    )
    score: Literal[
        "fit", "energy", "energy_white", "mean_abs", "rms", "max_abs", "small_frac", "accuracy", "random"
    ] = Field(
        default="fit",
        description="What stands for the weights of a position: what is lost once it is gone and the others make up for it "
        "(fit: measured on images, one position after another), what they add to the output (energy: measured on "
        "images; energy_white: for white input), their mean or largest absolute value, their root mean square, "
        "how many are small, the accuracy lost without them, or chance.",
    )
    groups: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="Groups of kernels with positions of their own (W-10); all layers must divide.",
    )
    group_by: Literal["output_channels", "input_channels"] = Field(
        default="output_channels", description="Whether groups are runs of output or of input channels."
    )
    max_rate: float = Field(default=0.5, gt=0, lt=1, description="Largest part of a layer's positions that is pruned.")
    target_reduction: float | None = Field(
        default=None,
        gt=1,
        description="End when the network takes this many times fewer multiplications than by direct convolution.",
    )
    target_speedup: float | None = Field(
        default=None,
        gt=1,
        description="End when the convolutions that the step works on take this many times less time than direct ones, by "
        "winograd's table and cost model for the target.",
    )
    rounds: int = Field(
        default=6,
        ge=1,
        le=100,
        description="How often the network is pruned and judged, at the most. A round that spends too much is taken back, and "
        "the next one goes half as far.",
    )
    training: WinogradTraining | None = Field(
        default=None,
        description="How the network is trained after each round. Without it, remaining weights are only fitted to what the "
        "layer gave before (least squares, on training images where there are any, else on selection images), and the report "
        "says that nothing was trained.",
    )
    compensate: bool = Field(
        default=True, description="Fit the weights of the remaining positions before a round is judged or trained."
    )
    exclude: tuple[LayerName, ...] = Field(default=(), max_length=10_000, description="Layers to leave as they are.")
    images_per_class: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Selection images used for probing, of each class. Default: as many as make 512 in all; for the score "
        "accuracy, all.",
    )
    cache_mib: int = Field(
        default=1024,
        ge=0,
        le=1_048_576,
        description="Memory for activations kept between probes, and for the images that layers are fitted to, in MiB.",
    )

    @model_validator(mode="after")
    def _selection_is_complete(self) -> "PruneWinograd":
        for name in ("count", "rate", "threshold"):
            if self.select == name and getattr(self, name) is None:
                raise ValueError(f"select is {name!r}, so {name} must be given")
            if self.select != name and getattr(self, name) is not None:
                raise ValueError(f"{name} is given, but select is {self.select!r}")
        if self.saves == "time" and self.select != "allocate":
            raise ValueError(f"saves is 'time', but select is {self.select!r}")
        if self.rate is not None and self.rate > self.max_rate:
            raise ValueError("rate must not be above max_rate")
        spatial = self.training is not None and self.training.domain == "spatial"
        if spatial and self.groups > 1 and self.group_by == "input_channels":
            raise ValueError("groups of input channels can only be trained in the domain winograd")
        return self


class QuantizeFixedPoint(Schema):
    """Method F (US11588496B2): a network in fixed-point integers only, every channel with a fractional length of its own that
    follows from the distribution of its values, and biases and weights aligned to the results of the convolution."""

    kind: Literal["quantize_fixed_point"]
    activation_bits: int = Field(default=8, ge=2, le=16, description="Bits of every tensor between layers.")
    weight_bits: int = Field(default=8, ge=2, le=16, description="Bits of every weight, its sign included.")
    layer_bits: dict[LayerName, Annotated[int, Field(ge=2, le=16)]] = Field(
        default={},
        max_length=10_000,
        description="Bits of the weights of single layers, by name; they go before weight_bits and assign_precision.",
    )
    bias_bits: int = Field(default=32, ge=2, le=32, description="Bits of every bias.")
    activation_lengths: Literal["per_channel", "per_layer"] = Field(
        default="per_channel",
        description="One fractional length for each channel of a tensor (the patent's), or one for all.",
    )
    weight_lengths: Literal["per_output_channel", "per_plane", "per_layer"] = Field(
        default="per_output_channel",
        description="One fractional length for each output channel, for each plane of one output and one input channel, or for "
        "the whole layer. With align retune_opt weights get the length that suits each output's result, near these.",
    )
    rule: Literal["pdf_sqnr", "empirical_mse", "max_abs", "k_sigma"] = Field(
        default="empirical_mse",
        description="How a fractional length is found: for the best signal to noise ratio of the distribution that the values "
        "seem to have (pdf_sqnr), or of the values themselves (empirical_mse); so that the largest fits (max_abs), or the mean "
        "and k standard deviations do (k_sigma).",
    )
    pdf: Literal["auto", "gaussian", "logistic", "hypsecant", "laplace", "uniform", "supercauchy"] = Field(
        default="auto",
        description="The distribution of pdf_sqnr; auto takes, for each channel, the one of nearest kurtosis.",
    )
    k: float = Field(default=3.5, gt=0, le=100, description="Standard deviations that k_sigma covers.")
    align: Literal["shift", "retune", "retune_opt"] = Field(
        default="retune_opt",
        description="How partial sums of different lengths meet: weights are shifted left, which loses nothing but takes wider "
        "weights (shift); weights are quantized at the length that makes them meet (retune), at the bias length that leaves the "
        "smallest error (retune_opt).",
    )
    additions: Literal["shift", "tie"] = Field(
        default="shift",
        description="How the two operands of an addition (of a residual) meet: the one of the shorter length is shifted left, "
        "which loses nothing (shift), or both get one length a channel, the shorter of the two, so that neither is shifted (tie).",
    )
    rounding: Literal["nearest", "compensated"] = Field(
        default="compensated",
        description="Round each weight by itself, or one after the other, each making up for the errors of those before it on "
        "calibration images.",
    )
    equalise: bool = Field(
        default=False,
        description="Scale the channels between two layers by powers of two until both layers' weights have the same range. "
        "Lengths of every channel do that by themselves with align retune_opt; it is for one length a layer, and for align shift.",
    )
    correct_bias: bool = Field(
        default=True, description="Take the mean error that quantization leaves in each output channel off its bias."
    )
    calibration_images: int = Field(
        default=500,
        ge=1,
        le=1_000_000,
        description="Images that distributions are measured on, and weights rounded for: training images where there are any, "
        "else selection images.",
    )
    statistics: Literal["calibration", "training"] = Field(
        default="calibration",
        description="Where distributions are measured: on calibration images, or on what passes while the network is trained "
        "before it is quantized (pretraining).",
    )
    pretraining: TrainingOptions | None = Field(
        default=None,
        description="Training of the floating-point network while statistics are taken (statistics: training).",
    )
    training: RecoveryTraining | None = Field(
        default=None,
        description="Retraining with the fractional lengths as they are, straight through the rounding. Without it, nothing "
        "learns from labels.",
    )
    cache_mib: int = Field(
        default=1024,
        ge=16,
        le=1_048_576,
        description="Memory for calibration activations, in MiB; compensated rounding sees as many images as fit.",
    )

    @model_validator(mode="after")
    def _statistics_have_a_source(self) -> "QuantizeFixedPoint":
        if (self.statistics == "training") != (self.pretraining is not None):
            raise ValueError("pretraining must be given if, and only if, statistics is 'training'")
        if self.equalise and self.statistics == "training":
            raise ValueError("equalise scales channels after training, so statistics must be 'calibration'")
        return self


class LayerChange(Schema):
    """How far the weights of one layer moved in one learning cycle: mean squares of their differences."""

    cycle_start: float = Field(ge=0, description="From the weights at the start of the cycle.")
    initial: float = Field(ge=0, description="From the weights before the first cycle.")


class LearningStatistics(Schema):
    """What was recorded while a network was trained; `winnow.WeightRecorder` writes it in a training loop of your own."""

    version: Literal[1] = 1
    cycles: tuple[Annotated[dict[LayerName, LayerChange], Field(min_length=1, max_length=10_000)], ...] = Field(
        min_length=1, max_length=1000, description="In their order, each with all layers by name."
    )
    variances: dict[LayerName, Annotated[float, Field(ge=0)]] = Field(
        max_length=10_000, description="Of each layer's weights after the last cycle."
    )
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None,
        max_length=1000,
        description="One for each cycle. Differences grow with the rate, so where rates differ they are divided by it.",
    )

    @model_validator(mode="after")
    def _cycles_agree(self) -> "LearningStatistics":
        names = set(self.cycles[0])
        for number, cycle in enumerate(self.cycles[1:], 2):
            if set(cycle) != names:
                raise ValueError(f"cycle {number} has other layers than the first: {sorted(set(cycle) ^ names)[:5]}")
        if set(self.variances) != names:
            raise ValueError(f"variances are of other layers than cycles: {sorted(set(self.variances) ^ names)[:5]}")
        if self.learning_rates is not None and len(self.learning_rates) != len(self.cycles):
            raise ValueError(f"{len(self.learning_rates)} learning rates are given for {len(self.cycles)} cycles")
        return self


class LearningCycles(RecoveryTraining):
    """Learning whose weight differences are recorded: SGD at a constant rate, without decay, from float weights.

    Batch normalisation keeps its statistics.
    """

    epochs: int = Field(default=3, ge=1, le=1000, description="Passes over the training data.")
    iterations: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Optimiser steps of one cycle. Default: an epoch is a cycle."
    )
    warmup_cycles: int = Field(
        default=1, ge=0, le=999, description="Cycles at the beginning that don't count: momentum is still gathering."
    )
    schedule: Literal["constant"] = Field(
        default="constant", description="Differences of cycles can be compared only at one rate."
    )
    loss: Literal["auto", "labels"] = Field(
        default="auto",
        description="Learn from labels; auto takes the uploaded model's own answers for labels where there are none.",
    )

    @model_validator(mode="after")
    def _some_cycle_counts(self) -> "LearningCycles":
        if self.iterations is None and self.warmup_cycles >= self.epochs:
            raise ValueError(f"warmup_cycles must be less than epochs ({self.epochs}): some cycle has to count")
        return self


class AssignPrecision(Schema):
    """Method Q (US11625577B2, US11934939B2): layers whose weights hardly move while the network learns are given fewer bits, as
    many of them as accuracy allows. quantize_fixed_point, later in the recipe, makes the network with these bits."""

    kind: Literal["assign_precision"]
    bits: tuple[Annotated[int, Field(ge=2, le=16)], ...] = Field(
        default=(8, 4),
        min_length=2,
        max_length=8,
        description="The first precision, which layers keep, and the lower ones. Each lower one is tried in a pass of its own, "
        "on the layers that the pass before has chosen.",
    )
    max_drop_pp: float = Field(
        default=0.5,
        ge=0,
        le=100,
        description="Accuracy that lower precisions may cost, in percentage points on the selection data, against the network "
        "with all layers at the first precision.",
    )
    reference: Literal["cycle_start", "initial"] = Field(
        default="cycle_start",
        description="What a weight's difference in a cycle is from: its value at the start of the cycle, or before all cycles.",
    )
    aggregate: Literal["mean", "sum", "max", "last", "ema"] = Field(
        default="mean", description="How the mean squares of all cycles become one statistic."
    )
    normalise: Literal["none", "var", "step"] = Field(
        default="none",
        description="Divide statistics by the variance of the layer's weights (var), or by the square of its quantization step at "
        "the lower precision (step).",
    )
    order: Literal["differences", "reversed", "random", "parameters", "quantization_error"] = Field(
        default="differences",
        description="In what order layers are given fewer bits: smallest statistic first (the patents'), largest first, at random, "
        "most weights first, or smallest relative error of rounded weights first.",
    )
    search: Literal["binary", "linear"] = Field(
        default="binary", description="How the number of layers is found; linear tries every number."
    )
    verify_neighbours: bool = Field(
        default=True,
        description="Try one and two layers more than were found: accuracy doesn't always fall with their number.",
    )
    exclude_smallest: bool = Field(default=False, description="Leave the layer with the smallest statistic as it is.")
    frozen: Literal["exclude", "include"] = Field(
        default="exclude",
        description="What to do with layers whose weights never moved: they say nothing, and would come first.",
    )
    exclude: tuple[LayerName, ...] = Field(
        default=(), max_length=10_000, description="Layers to keep at the first precision."
    )
    learning: LearningCycles = Field(
        default=LearningCycles(), description="How the network learns, unless statistics are given."
    )
    statistics: LearningStatistics | None = Field(
        default=None, description="Recorded in a training of your own, in place of learning here."
    )
    keep: Literal["better", "learned", "given"] = Field(
        default="better",
        description="Which weights go on: those that were learned, those that were given, or the better ones on selection images.",
    )
    controls: int = Field(
        default=5,
        ge=0,
        le=100,
        description="Random orders that the chosen one is compared with, at the same number of layers, besides the other orders; "
        "0 for no comparison.",
    )

    @model_validator(mode="after")
    def _bits_fall(self) -> "AssignPrecision":
        if list(self.bits) != sorted(set(self.bits), reverse=True):
            raise ValueError(f"bits must fall from the first precision on, such as [8, 4]; got {list(self.bits)}")
        return self


Step = Annotated[
    PruneWeights | PruneWinograd | AssignPrecision | QuantizeFixedPoint | Finetune, Field(discriminator="kind")
]
STEP_KINDS: dict[str, type[Schema]] = {
    "prune_weights": PruneWeights,
    "prune_winograd": PruneWinograd,
    "assign_precision": AssignPrecision,
    "quantize_fixed_point": QuantizeFixedPoint,
    "finetune": Finetune,
}
