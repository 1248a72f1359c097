"""Answers to creating requests, so that a client that sends the same `Idempotency-Key` again gets the same answer."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs.database import now
from jobs.tables import IdempotencyRow


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
    moment = now(session)
    session.execute(
        delete(IdempotencyRow).where(
            IdempotencyRow.route == route, IdempotencyRow.key == key, IdempotencyRow.expires_at <= moment
        )
    )
    try:
        with session.begin_nested():
            session.add(
                IdempotencyRow(
                    route=route,
                    key=key,
                    fingerprint=fingerprint,
                    created_at=moment,
                    expires_at=moment + timedelta(seconds=keep_seconds),
                )
            )
    except IntegrityError:
        row = session.execute(
            select(IdempotencyRow).where(IdempotencyRow.route == route, IdempotencyRow.key == key)
        ).scalar_one()
        return RememberedAnswer(fingerprint=row.fingerprint, status=row.status, response=row.response)
    return None


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
