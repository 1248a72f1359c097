"""Reads what a runner wrote. A runner has read a stranger's file, so nothing that comes from it is taken on trust."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

MAX_DEPTH = 32
MAX_INTEGER = 2**63  # what a 64-bit column holds

Model = TypeVar("Model", bound=BaseModel)


class Untrustworthy(Exception):
    """The runner wrote something that no honest runner writes."""


def parse_untrusted(schema: type[Model], document: bytes) -> Model:
    """The document as a value of this schema that every database and every JSON reader can take. Raises `Untrustworthy`."""
    try:
        value = schema.model_validate_json(document)
    except (ValidationError, RecursionError) as invalid:
        reason = invalid.errors()[0]["msg"] if isinstance(invalid, ValidationError) else "nested too deeply"
        raise Untrustworthy(f"it is not a valid {schema.__name__}: {reason}") from invalid
    _refuse_excess(value.model_dump(), depth=0)
    return value


@contextmanager
def open_untrusted(folder: Path, name: str, *, max_bytes: int) -> Iterator[BinaryIO]:
    """The file `name` in `folder`, if it is a plain file of its own: no link to elsewhere, no pipe. Raises `Untrustworthy`."""
    try:
        inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as missing:
        raise Untrustworthy(f"{folder.name}/ is not a folder") from missing
    try:
        # Non-blocking: opening a pipe must not wait for somebody to write into it.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=inside)
    except OSError as unreadable:
        raise Untrustworthy(f"{name} can't be opened: {unreadable.strerror}") from unreadable
    finally:
        os.close(inside)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise Untrustworthy(f"{name} is not a plain file")
        if status.st_size > max_bytes:
            raise Untrustworthy(f"{name} has {status.st_size} bytes; at most {max_bytes} are accepted")
        yield file


def _refuse_excess(
    value: Any, depth: int
) -> None:  # any JSON value; odd characters and NaN are the database layer's care
    if depth > MAX_DEPTH:
        raise Untrustworthy("it is nested too deeply")
    match value:
        case int() if not -MAX_INTEGER <= value < MAX_INTEGER:
            raise Untrustworthy("a number is too large")
        case dict():
            for item in value.values():
                _refuse_excess(item, depth + 1)
        case list() | tuple():
            for item in value:
                _refuse_excess(item, depth + 1)
        case _:
            return
