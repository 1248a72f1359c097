"""Moves jobs as a worker does, through the same repository, without reading any file."""

from typing import Any

from sqlalchemy import or_, select

from jobs.database import Database
from jobs.errors import ErrorCode, JobError
from jobs.inspection import DatasetInspection, Eligibility, LayerInfo, ModelInspection, TensorInfo
from jobs.report import FileSize, Provenance, Report, Totals, Verdict
from jobs.repository.lifecycle import NewArtifact, claim_job, fail_job, finish_cancel, record_progress, succeed_job
from jobs.storage import LocalStorage
from jobs.tables import JobRow

LEASE_SECONDS = 90.0

MODEL = ModelInspection(
    format="onnx",
    opset=17,
    inputs=(TensorInfo(name="image", dtype="float32", shape=("N", 1, 8, 8)),),
    outputs=(TensorInfo(name="scores", dtype="float32", shape=("N", 10)),),
    batch_size=None,
    classes=10,
    parameters=740,
    macs=7_000,
    layers=(
        LayerInfo(
            name="conv", kind="conv2d", weight_shape=(8, 1, 3, 3), output_shape=(8, 8, 8), parameters=80, macs=4608,
            steps={"prune_weights": Eligibility(eligible=True), "finetune": Eligibility(eligible=True)},
        ),
        LayerInfo(
            name="head", kind="linear", weight_shape=(10, 64), output_shape=(10,), parameters=650, macs=640,
            steps={"prune_weights": Eligibility(eligible=False, reason="it is tied"), "finetune": Eligibility(eligible=True)},
        ),
    ),
    operators={"aten.conv2d.default": 1, "aten.linear.default": 1},
)  # fmt: skip

DATASET = DatasetInspection(
    format="npz",
    images=200,
    shape=(1, 8, 8),
    dtype="float32",
    labelled=True,
    class_counts={str(digit): 20 for digit in range(10)},
)

_TOTALS = Totals(
    parameters=730, nonzeros=400, weight_bits=32, multiplications=5248, effective_multiplications=3000, dense_bytes=2920,
    bitmap_bytes=1692, csr_bytes=3300,
)  # fmt: skip
_SIZE = FileSize(bytes=4000, deflated_bytes=3000)

REPORT = Report(
    verdict=Verdict(sentence="Half of the weights are gone.", limits_kept=True),
    measure="top1",
    accuracy_before=None,
    accuracy_after=None,
    change=None,
    before=_TOTALS,
    after=_TOTALS,
    original_size=_SIZE,
    files=(),
    steps=(),
    layers=(),
    data=(),
    provenance=Provenance(
        input_sha256="0" * 64, seed=0, recipe=[], versions={}, device="cpu", threads=1, sandbox={}, wall_seconds={},
        cpu_seconds=0.0,
    ),
)  # fmt: skip


class FakeWorker:
    def __init__(self, database: Database, storage: LocalStorage) -> None:
        self._database, self._storage = database, storage

    def accept_model(self, model_id: str, inspection: ModelInspection = MODEL) -> None:
        """Find the model in order."""
        self._finish_inspection(model_id, inspection.model_dump(mode="json"))

    def accept_dataset(self, dataset_id: str, inspection: DatasetInspection = DATASET) -> None:
        """Find the dataset in order."""
        self._finish_inspection(dataset_id, inspection.model_dump(mode="json"))

    def reject(self, upload_id: str, message: str) -> None:
        """Find the upload impossible to use."""
        job_id = self._inspection_of(upload_id)
        token = self._claim(job_id)
        error = JobError(code=ErrorCode.MODEL_REJECTED, message=message, hint="Export it again.")
        with self._database.writing() as session:
            fail_job(session, job_id, token, error)

    def start(self, job_id: str) -> str:
        """Claim a job; returns the lease's token."""
        return self._claim(job_id)

    def progress(self, job_id: str, token: str, fraction: float, *events: tuple[str, dict[str, Any]]) -> None:
        with self._database.writing() as session:
            record_progress(
                session, job_id, token, phase="prune_weights", fraction=fraction, step=0, message="layer 1 of 2",
                events=events,
            )  # fmt: skip

    def succeed(self, job_id: str, token: str, files: dict[str, bytes] | None = None) -> None:
        """End a job with a report and these model files."""
        contents = {"report.json": REPORT.model_dump_json().encode(), **(files or {})}
        artifacts = [self._store(name, content) for name, content in contents.items()]
        with self._database.writing() as session:
            succeed_job(session, job_id, token, artifacts=artifacts, verdict=REPORT.verdict.sentence)

    def run(self, job_id: str, files: dict[str, bytes] | None = None) -> None:
        """Start a job and end it well."""
        self.succeed(job_id, self.start(job_id), files)

    def fail(self, job_id: str) -> None:
        """Start a job and end it badly."""
        error = JobError(code=ErrorCode.STALLED, message="The runner fell silent.", retryable=True)
        token = self._claim(job_id)
        with self._database.writing() as session:
            fail_job(session, job_id, token, error)

    def stop(self, job_id: str, token: str) -> None:
        """Obey a cancel request."""
        with self._database.writing() as session:
            finish_cancel(session, job_id, token)

    def _finish_inspection(self, upload_id: str, inspection: dict[str, Any]) -> None:
        job_id = self._inspection_of(upload_id)
        token = self._claim(job_id)
        with self._database.writing() as session:
            succeed_job(session, job_id, token, inspection=inspection)

    def _inspection_of(self, upload_id: str) -> str:
        with self._database.reading() as session:
            return session.execute(
                select(JobRow.id).where(
                    or_(JobRow.model_id == upload_id, JobRow.dataset_id == upload_id), JobRow.kind != "compress"
                )
            ).scalar_one()

    def _claim(self, job_id: str) -> str:
        with self._database.writing() as session:
            job = claim_job(session, job_id, worker="fake", lease_seconds=LEASE_SECONDS)
        assert job is not None and job.lease_token is not None
        return job.lease_token

    def _store(self, name: str, content: bytes) -> NewArtifact:
        writer = self._storage.new_blob()
        writer.write(content)
        blob = writer.finish()
        is_report = name == "report.json"
        return NewArtifact(
            name=name,
            kind="report" if is_report else "model",
            media_type="application/json" if is_report else "application/octet-stream",
            size_bytes=blob.size_bytes,
            sha256=blob.sha256,
        )
