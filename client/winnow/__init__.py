"""Winnow's client: compress trained CNNs with a Winnow server.

    with Client("http://127.0.0.1:8000") as winnow:
        model = winnow.wait_ready(winnow.upload_model("resnet.onnx"))

The command line `winnow` (`winnow.cli`) is made of the same calls.
"""

from winnow.client import DEFAULT_URL, Client
from winnow.errors import (
    ApiProblem,
    ConnectionLost,
    DigestMismatch,
    FieldError,
    FileMissing,
    NoServer,
    UploadRejected,
    WinnowError,
)
from winnow.resources import Artifact, Document, Event, Job, Upload
from winnow.uploads import OnProgress
from winnow.weight_recorder import WeightRecorder

__all__ = [
    "DEFAULT_URL",
    "ApiProblem",
    "Artifact",
    "Client",
    "ConnectionLost",
    "DigestMismatch",
    "Document",
    "Event",
    "FieldError",
    "FileMissing",
    "Job",
    "NoServer",
    "OnProgress",
    "Upload",
    "UploadRejected",
    "WeightRecorder",
    "WinnowError",
]
