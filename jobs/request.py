"""What a user asks for: a model, data by role, a recipe of steps or a goal, limits.

The descriptions below become the API's documentation (OpenAPI); the bounds are checked at the edge, and everything behind it
trusts them.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from jobs.recipe import Schema, Step

ModelId = Annotated[str, StringConstraints(pattern=r"^mdl_[0-9a-z]{26}$")]
DatasetId = Annotated[str, StringConstraints(pattern=r"^dst_[0-9a-z]{26}$")]
OutputFormat = Literal["onnx", "pt2", "pt2_standard", "pt2_integers", "c"]


class DataRoles(Schema):
    """Which dataset plays which part. Roles never mix."""

    train: DatasetId | None = Field(default=None, description="Data for steps that learn.")
    selection: DatasetId | None = Field(
        default=None, description="Data for every decision. Alone, it is split by class."
    )
    test: DatasetId | None = Field(
        default=None, description="Data for the figures in the report; looked at once, at the end."
    )


class Preprocess(Schema):
    """How stored pixels become the model's input: x*scale, minus mean, over std, per channel."""

    scale: float = Field(default=1.0, gt=0, description="Factor applied first, such as 1/255.")
    mean: tuple[float, ...] = Field(
        default=(0.0,), min_length=1, max_length=4096, description="One value, or one a channel."
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1.0,), min_length=1, max_length=4096, description="One value, or one a channel."
    )
    resize: int | None = Field(
        default=None, ge=1, le=8192, description="Image folders only: shorter side in pixels after resizing."
    )
    crop: int | None = Field(
        default=None, ge=1, le=8192, description="Image folders only: side of the square cut from the centre."
    )


class Limits(Schema):
    """What the job may spend."""

    max_accuracy_drop_pp: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Loss of accuracy, in percentage points, that the verdict is held against.",
    )
    deadline_seconds: int = Field(
        default=24 * 3600, ge=1, le=30 * 24 * 3600, description="Running time after which the job fails."
    )


class Target(Schema):
    """Where the delivered file is to run; latency is measured there."""

    runtime: Literal["onnxruntime", "torch"] = "onnxruntime"
    device: Literal["cpu"] = "cpu"
    threads: int = Field(default=1, ge=1, le=1024)
    batch_size: int = Field(default=1, ge=1, le=4096)


class Constraints(Schema):
    """What the delivered file must keep to, whatever is minimised."""

    max_bytes: int | None = Field(default=None, ge=1, description="Size of the file that the target runtime opens.")
    max_latency_ms: float | None = Field(default=None, gt=0, description="Median of one inference on the target.")


class Goal(Schema):
    """What to reach, in place of a recipe: Winnow searches for the steps and their settings."""

    max_accuracy_drop_pp: float = Field(
        default=1.0, ge=0, le=100, description="Accuracy that you can spare, in percentage points."
    )
    minimise: Literal["latency", "bytes", "operations"] = Field(
        default="bytes",
        description="latency: of one inference on the target. bytes: of the file that the target runtime opens. operations: "
        "bit operations of one image, which are multiplications times the bits of both factors.",
    )
    constraints: Constraints = Constraints()
    confidence: float = Field(
        default=0.8,
        ge=0.5,
        lt=1,
        description="How sure to be that new images keep the limit, too, told from the answers that flipped on the selection "
        "images; where there are enough of these, a third of them has no part in the search and must confirm its choice with "
        "the same confidence. At 0.5, what was measured on them is taken as it is.",
    )
    deadline_seconds: int = Field(
        default=600,
        ge=10,
        le=30 * 24 * 3600,
        description="How long the search may take. Then the best network so far is delivered, verified like any other.",
    )


class JobRequest(Schema):
    """One compression job."""

    model: ModelId
    data: DataRoles = DataRoles()
    preprocess: Preprocess | None = None
    recipe: tuple[Step, ...] = Field(default=(), max_length=32, description="What to do, step by step.")
    goal: Goal | None = Field(default=None, description="What to reach, in place of a recipe.")
    limits: Limits = Limits()
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    outputs: tuple[OutputFormat, ...] = Field(
        default=("onnx", "pt2"),
        min_length=1,
        max_length=5,
        description="Files to deliver. pt2_standard: a .pt2 file in torch's own operators only, for who can't install winograd "
        "(other networks are the same in both). pt2_integers: a .pt2 file that computes in 8-bit integers, as one operator of "
        "winograd. c: C99 source without dependencies. These two are of networks that end in integers (quantize_fixed_point).",
    )
    target: Target = Target()
    metadata: dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ] = Field(
        default_factory=dict, max_length=16, description="Your own labels; stored and returned, never interpreted."
    )

    @model_validator(mode="after")
    def _says_what_to_do(self) -> "JobRequest":
        if bool(self.recipe) == (self.goal is not None):
            raise ValueError("give either a recipe with at least one step, or a goal")
        return self
