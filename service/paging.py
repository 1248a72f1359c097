"""Pages of lists: a token says where the next page begins, and for which list and filters it was given."""

import hashlib
import json
from collections.abc import Sequence
from typing import TypeVar

from jobs.identifiers import Prefix
from service.refusals import PageNotFound

Row = TypeVar("Row")


def first_id_before(token: str | None, prefix: Prefix, filters: dict[str, object]) -> str | None:
    """The id that the page's items come after, newest first; None for the first page."""
    if token is None:
        return None
    ending, _, mark = token.partition(".")
    if mark != _mark(prefix, filters):
        raise PageNotFound
    return f"{prefix}_{ending}"


def split_page(rows: Sequence[Row], page_size: int) -> tuple[Sequence[Row], Row | None]:
    """The page, and its last item if more follow. Ask the database for one item more than the page has."""
    page = rows[:page_size]
    return page, page[-1] if len(rows) > page_size else None


def token_after(last_id: str | None, prefix: Prefix, filters: dict[str, object]) -> str | None:
    """The token of the page that follows the item called `last_id`."""
    if last_id is None:
        return None
    return f"{last_id.removeprefix(prefix + '_')}.{_mark(prefix, filters)}"


def _mark(prefix: Prefix, filters: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps([prefix, filters], sort_keys=True).encode()).hexdigest()[:16]
