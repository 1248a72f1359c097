"""A worker as clients see one: a thread that does whatever waits, by the hands of the service tests' `FakeWorker`."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select

from jobs.database import Database
from jobs.repository.worker_queries import wishes_for
from jobs.states import JobState
from jobs.storage import LocalStorage
from jobs.tables import JobRow, ModelRow
from tests.client.sample_report import sample_report
from tests.service.fake_worker import FakeWorker

LOOK_SECONDS = 0.02
PICKLE = b"\x80\x04"


class PlayedWorker:
    """Works on whatever waits. `hold` makes compression jobs run until it is lifted or they are cancelled or finished."""

    def __init__(self, folder: Path) -> None:
        self._database = Database(f"sqlite:///{folder / 'winnow.sqlite'}")
        self._storage = LocalStorage(folder / "storage")
        self._hands = FakeWorker(self._database, self._storage)
        self._stopping = threading.Event()
        self._lifted = threading.Event()
        self._lifted.set()
        self.fails = False
        self.keeps_limits = True
        self.delivers: dict[str, bytes] = {"model.onnx": b"a smaller model" * 100_000}

    def hold(self) -> None:
        self._lifted.clear()

    def lift(self) -> None:
        self._lifted.set()

    @contextmanager
    def working(self) -> Iterator[None]:
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()
            self._database.close()

    def _work(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            with self._database.reading() as session:
                waiting = session.execute(select(JobRow).where(JobRow.state == JobState.QUEUED)).scalars().all()
            for job in waiting:
                self._do(job)

    def _do(self, job: JobRow) -> None:
        if job.kind == "inspect_dataset":
            assert job.dataset_id is not None
            self._hands.accept_dataset(job.dataset_id)
        elif job.kind == "inspect_model":
            assert job.model_id is not None
            self._inspect_model(job.model_id)
        elif self.fails:
            self._hands.fail(job.id)
        else:
            self._compress(job.id)

    def _inspect_model(self, model_id: str) -> None:
        with self._database.reading() as session:
            model = session.get(ModelRow, model_id)
        assert model is not None
        with self._storage.open(model.sha256) as file:
            is_pickle = file.read(len(PICKLE)) == PICKLE
        if is_pickle:
            self._hands.reject(model_id, "It is a pickle.")
        else:
            self._hands.accept_model(model_id)

    def _compress(self, job_id: str) -> None:
        token = self._hands.start(job_id)
        for tenth in range(1, 4):
            self._hands.progress(job_id, token, tenth / 10, ("layer_pruned", {"layer": f"conv{tenth}"}))
        while not self._lifted.wait(LOOK_SECONDS) and not self._stopping.is_set():
            with self._database.reading() as session:
                wishes = wishes_for(session, job_id)
            if wishes.cancel:
                self._hands.stop(job_id, token)
                return
            if wishes.finish:
                break
        report = sample_report(limits_kept=self.keeps_limits).model_dump_json().encode()
        self._hands.succeed(job_id, token, {**self.delivers, "report.json": report})
