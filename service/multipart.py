"""The one file in a multipart/form-data body, read as it arrives."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.refusals import Fault, InvalidRequest, MalformedUpload

FIELD = "file"


class FilePart:
    """Feed it the body; take the file's bytes from it."""

    def __init__(self, content_type: str) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise MalformedUpload("The Content-Type multipart/form-data has no boundary.")
        self.filename: str | None = None
        self.waiting_bytes = 0
        self._waiting: list[bytes] = []
        self._header_name = self._header_value = b""
        self._disposition = b""
        self._found = False
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_to_header_name,
                    "on_header_value": self._add_to_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise MalformedUpload(str(error)) from error

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedUpload(str(error)) from error

    def take(self) -> list[bytes]:
        """The file's bytes that were fed since last time."""
        taken, self._waiting, self.waiting_bytes = self._waiting, [], 0
        return taken

    def finish(self) -> None:
        """The body has ended: was it whole?"""
        if not self._ended:
            raise MalformedUpload("The multipart body ends before its last boundary.")
        if not self._found:
            raise _refusal("The multipart body has no part named `file`.")

    def _begin_part(self) -> None:
        self._disposition = b""

    def _add_to_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_to_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        options = parse_options_header(self._disposition)[1]
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != FIELD:
            raise _refusal(f"The multipart body has a part named {name[:100]!r}; only one named `file` is taken.", name)
        if self._found:
            raise _refusal("The multipart body has more than one part named `file`.")
        self._found = True
        filename = options.get(b"filename")
        self.filename = None if filename is None else filename.decode("utf-8", "replace")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._waiting.append(data[start:end])
        self.waiting_bytes += end - start

    def _end(self) -> None:
        self._ended = True


def _refusal(message: str, parameter: str = FIELD) -> InvalidRequest:
    return InvalidRequest(
        message,
        hint="With curl it is `-F file=@FILE`.",
        faults=[Fault(parameter=parameter[:100], message=message)],
    )
