"""What can go wrong between a client and a Winnow server, each with what happened and what to do.

WinnowError
├── NoServer          nobody listens at that address
├── ConnectionLost    the server answered before, and has been silent for longer than we are willing to wait
├── ApiProblem        the server refused the request and said why (RFC 9457)
├── UploadRejected    the file arrived, but the server can't use it
└── DigestMismatch    the bytes that arrived are not the bytes that were sent
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2


class WinnowError(Exception):
    """Winnow couldn't do what was asked."""


class NoServer(WinnowError):
    """No server answers at this address."""

    def __init__(self, base_url: str) -> None:
        super().__init__(f"no Winnow server at {base_url}; start one with `winnow-server up`, or set WINNOW_URL")
        self.base_url = base_url


class ConnectionLost(WinnowError):
    """The server stopped answering."""

    def __init__(self, base_url: str, reason: str) -> None:
        super().__init__(f"the Winnow server at {base_url} stopped answering ({reason})")
        self.base_url = base_url


@dataclass(frozen=True)
class FieldError:
    """One fault in a request, and where: a JSON pointer such as `#/recipe/0/max_drop_pp`, or a parameter's name."""

    detail: str
    place: str | None = None
    hint: str | None = None

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "FieldError":
        place = document.get("pointer") or document.get("parameter")
        return cls(detail=str(document.get("detail", "")), place=place, hint=document.get("hint"))

    def __str__(self) -> str:
        return f"{self.place or 'request'}: {self.detail}" + (f" ({self.hint})" if self.hint else "")


class ApiProblem(WinnowError):
    """The server refused a request and said why."""

    def __init__(
        self,
        status: int,
        title: str,
        *,
        detail: str | None = None,
        hint: str | None = None,
        errors: tuple[FieldError, ...] = (),
        document: dict[str, Any] | None = None,
    ) -> None:
        self.status, self.title, self.detail, self.hint, self.errors = status, title, detail, hint, errors
        self.document = document or {}
        self.type = str(self.document.get("type", "about:blank"))
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        lines = [f"{self.title} ({self.status})" + (f": {self.detail}" if self.detail else "")]
        lines += [f"  {error}" for error in self.errors]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)

    @classmethod
    def from_response(cls, response: httpx2.Response) -> "ApiProblem":
        """The problem document of a response that has been read; a bare status where a proxy answered instead of Winnow."""
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            return cls(response.status_code, response.reason_phrase or "The server answered with an error")
        errors = tuple(FieldError.from_document(error) for error in document.get("errors") or ())
        return cls(
            response.status_code,
            str(document.get("title") or response.reason_phrase),
            detail=document.get("detail"),
            hint=document.get("hint"),
            errors=errors,
            document=document,
        )


class FileMissing(WinnowError):
    """There is no such file on this machine."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"there is no file {path}")
        self.path = path


class UploadRejected(WinnowError):
    """The server read the uploaded file and can't use it."""

    def __init__(self, upload_id: str, filename: str, error: dict[str, Any]) -> None:
        hint = f"\nhint: {error['hint']}" if error.get("hint") else ""
        super().__init__(f"{filename} ({upload_id}) was rejected: {error.get('message', 'no reason given')}{hint}")
        self.upload_id, self.filename, self.error = upload_id, filename, error


class DigestMismatch(WinnowError):
    """What was downloaded is not what the server stores; nothing was saved."""

    def __init__(self, name: str, expected: str, actual: str) -> None:
        super().__init__(
            f"{name} arrived damaged: its SHA-256 is {actual}, not {expected}; nothing was saved, try again"
        )
        self.expected, self.actual = expected, actual
