"""`Idempotency-Key`: a creating request that is sent again gets the first one's answer, and creates nothing.

The key is written in the transaction that creates. A request that dies leaves no key behind, so its repetition is
served afresh; of two that run at once, in whatever processes, the database lets one create, and the other answers
with what the first one made.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import Response
from sqlalchemy.orm import Session

from jobs.repository.idempotency import RememberedAnswer, abandon_request, begin_request, complete_request
from service.refusals import KeyInFlight, KeyReused


@dataclass(frozen=True)
class Answer:
    """A creating request's answer, as it is sent and as it is remembered."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    def response(self, *, replayed: bool) -> Response:
        headers = {**self.headers, "Idempotency-Replayed": "true"} if replayed else self.headers
        content = json.dumps(self.body, ensure_ascii=False, separators=(",", ":"))
        return Response(content, status_code=self.status, headers=headers, media_type="application/json")


@dataclass(frozen=True)
class CreatingRequest:
    """Where a request goes, the key that it carries if any, and the digest of all that it asks for."""

    route: str
    key: str | None
    fingerprint: str
    keep_seconds: float

    def earlier_answer(self, session: Session) -> Answer | None:
        """What this request was answered before, without taking its key."""
        if self.key is None:
            return None
        answer = self._take_key(session)
        if answer is None:
            abandon_request(session, route=self.route, key=self.key)
        return answer

    def create(self, session: Session, make: Callable[[], Answer]) -> Response:
        """What `make` creates and answers, or the earlier answer."""
        if self.key is None:
            return make().response(replayed=False)
        earlier = self._take_key(session)
        if earlier is not None:
            return earlier.response(replayed=True)
        answer = make()
        complete_request(
            session,
            route=self.route,
            key=self.key,
            status=answer.status,
            response={"body": answer.body, "headers": answer.headers},
        )
        return answer.response(replayed=False)

    def _take_key(self, session: Session) -> Answer | None:
        assert self.key is not None
        remembered = begin_request(
            session, route=self.route, key=self.key, fingerprint=self.fingerprint, keep_seconds=self.keep_seconds
        )
        return None if remembered is None else self._checked(remembered)

    def _checked(self, remembered: RememberedAnswer) -> Answer:
        if remembered.fingerprint != self.fingerprint:
            raise KeyReused
        if remembered.status is None or remembered.response is None:
            raise KeyInFlight
        return Answer(remembered.status, remembered.response["body"], remembered.response["headers"])


class KeysInFlight:
    """The keys of uploads that are arriving at this process."""

    def __init__(self) -> None:
        self._keys: set[tuple[str, str]] = set()

    @contextmanager
    def holding(self, request: CreatingRequest) -> Iterator[None]:
        """Refuse a second upload with the same key while the first one is still coming in."""
        if request.key is None:
            yield
            return
        mark = (request.route, request.key)
        if mark in self._keys:
            raise KeyInFlight
        self._keys.add(mark)
        try:
            yield
        finally:
            self._keys.remove(mark)


def fingerprint(parts: Mapping[str, object]) -> str:
    """A digest of what a request asks for."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
