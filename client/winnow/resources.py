"""What the server tells of models, datasets, jobs and artifacts, as values. `document` is the server's whole answer."""

from dataclasses import dataclass
from typing import Any, Literal

Document = dict[str, Any]  # JSON, as the server's OpenAPI document describes it
Kind = Literal["model", "dataset"]
FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class Upload:
    """A model or dataset. `inspecting` until a worker has read it, then `ready` or `rejected`."""

    kind: Kind
    id: str
    state: str
    filename: str
    size_bytes: int
    sha256: str
    document: Document

    @classmethod
    def from_document(cls, kind: Kind, document: Document) -> "Upload":
        fields = ("id", "state", "filename", "size_bytes", "sha256")
        return cls(kind=kind, document=document, **{field: document[field] for field in fields})


@dataclass(frozen=True)
class Job:
    """A compression job as the server knew it when it answered."""

    id: str
    state: str
    phase: str | None
    progress: float
    step: int | None
    steps: int
    message: str | None
    eta_seconds: int | None
    jobs_ahead: int | None
    attempt: int
    max_attempts: int
    verdict: str | None
    error: Document | None
    document: Document

    @property
    def is_final(self) -> bool:
        return self.state in FINAL_STATES

    @classmethod
    def from_document(cls, document: Document) -> "Job":
        return cls(
            id=document["id"],
            state=document["state"],
            phase=document.get("phase"),
            progress=float(document.get("progress") or 0.0),
            step=document.get("step"),
            steps=int(document.get("steps") or 0),
            message=document.get("message"),
            eta_seconds=document.get("eta_seconds"),
            jobs_ahead=document.get("jobs_ahead"),
            attempt=int(document.get("attempt") or 0),
            max_attempts=int(document.get("max_attempts") or 1),
            verdict=document.get("verdict"),
            error=document.get("error"),
            document=document,
        )


@dataclass(frozen=True)
class Event:
    """Something that happened to a job. `seq` counts from 1 without gaps."""

    seq: int
    type: str
    at: str
    data: Document

    @property
    def is_final(self) -> bool:
        return self.type in FINAL_STATES

    @classmethod
    def from_document(cls, document: Document) -> "Event":
        return cls(seq=document["seq"], type=document["type"], at=document["at"], data=document.get("data") or {})


@dataclass(frozen=True)
class Artifact:
    """A file that a job delivered."""

    id: str
    name: str
    kind: str
    size_bytes: int
    sha256: str
    document: Document

    @classmethod
    def from_document(cls, document: Document) -> "Artifact":
        fields = ("id", "name", "kind", "size_bytes", "sha256")
        return cls(document=document, **{field: document[field] for field in fields})
