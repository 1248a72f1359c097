"""What a worker found in an uploaded file: enough for the API to judge a recipe without parsing the file itself."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Found(BaseModel):
    model_config = ConfigDict(frozen=True)


class TensorInfo(Found):
    """An input or output. A string in the shape names a dimension that may vary."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Eligibility(Found):
    """Whether a step kind can work on a layer, and if not, why."""

    eligible: bool
    reason: str | None = None


class LayerInfo(Found):
    """A convolution or linear layer, under the uploader's own name, in execution order."""

    name: str
    kind: Literal["conv2d", "conv_transpose2d", "linear", "winograd_conv2d"]
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...] = Field(description="For one image; the batch dimension is left out.")
    parameters: int = Field(description="Weights and biases.")
    macs: int = Field(description="Multiply-adds for one image.")
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    steps: dict[str, Eligibility] = Field(description="By step kind.")


class ModelInspection(Found):
    """What `GET /v1/models/{id}` shows of a model that is ready."""

    format: Literal["onnx", "pt2"]
    producer: str | None = None
    opset: int | None = None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    batch_size: int | None = Field(description="The one batch size the model takes, or null if any will do.")
    classes: int | None = Field(
        description="Number of classes if the first output is a class score per image, else null."
    )
    parameters: int
    macs: int
    layers: tuple[LayerInfo, ...]
    operators: dict[str, int] = Field(description="How often each ATen operator occurs.")
    warnings: tuple[str, ...] = ()


class DatasetInspection(Found):
    """What `GET /v1/datasets/{id}` shows of a dataset that is ready."""

    format: Literal["npz", "image_folder", "safetensors"]
    images: int
    shape: tuple[int | str, ...] = Field(description="Of one image, channels first; a string where images differ.")
    dtype: str
    labelled: bool
    class_counts: dict[str, int] = Field(default_factory=dict, description="Images by class; empty without labels.")
    channel_mean: tuple[float, ...] = ()
    channel_std: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
