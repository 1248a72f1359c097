"""Answers to creating requests, so that a client that sends the same `Idempotency-Key` again gets the same answer."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs.database import now
from jobs.tables import IdempotencyRow

# A process that was killed while it served a request must not keep the client's key for a day.
ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True)
class RememberedAnswer:
    """What is known of a key that was used before; no status while the first request is still being served."""

    fingerprint: str
    status: int | None
    response: dict[str, Any] | None


def begin_request(
    session: Session, *, route: str, key: str, fingerprint: str, keep_seconds: float
) -> RememberedAnswer | None:
    """Take the key for this request (None), or learn what became of the request that took it before."""
    while True:
        _free_if_over(session, route, key)
        if _take(session, route, key, fingerprint, keep_seconds):
            return None
        row = session.execute(
            select(IdempotencyRow)
            .where(IdempotencyRow.route == route, IdempotencyRow.key == key)
            .execution_options(populate_existing=True)
        ).scalar_one_or_none()
        if row is not None:
            return RememberedAnswer(fingerprint=row.fingerprint, status=row.status, response=row.response)
        # Its owner gave the key up between our two statements; now it is free.


def _free_if_over(session: Session, route: str, key: str) -> None:
    moment = now(session)
    abandoned = and_(
        IdempotencyRow.status.is_(None), IdempotencyRow.created_at <= moment - timedelta(seconds=ABANDONED_SECONDS)
    )
    session.execute(
        delete(IdempotencyRow)
        .where(
            IdempotencyRow.route == route,
            IdempotencyRow.key == key,
            or_(IdempotencyRow.expires_at <= moment, abandoned),
        )
        .execution_options(synchronize_session=False)
    )


def _take(session: Session, route: str, key: str, fingerprint: str, keep_seconds: float) -> bool:
    moment = now(session)
    row = IdempotencyRow(
        route=route,
        key=key,
        fingerprint=fingerprint,
        created_at=moment,
        expires_at=moment + timedelta(seconds=keep_seconds),
    )
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        return False
    return True


def complete_request(session: Session, *, route: str, key: str, status: int, response: dict[str, Any]) -> None:
    """Remember the answer; in the transaction that created what it speaks of."""
    session.execute(
        update(IdempotencyRow)
        .where(IdempotencyRow.route == route, IdempotencyRow.key == key)
        .values(status=status, response=response)
        .execution_options(synchronize_session=False)
    )


def abandon_request(session: Session, *, route: str, key: str) -> None:
    """Free the key: the request created nothing."""
    session.execute(
        delete(IdempotencyRow).where(
            IdempotencyRow.route == route, IdempotencyRow.key == key, IdempotencyRow.status.is_(None)
        )
    )


def forget_old_answers(session: Session) -> None:
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.expires_at <= now(session)))
