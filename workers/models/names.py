"""Names from files, made safe to be attributes and identifiers: fx pastes them into the code that it generates."""

import re
from dataclasses import dataclass, field

from torch import fx, nn

MAX_NAME_LENGTH = 256

_NOT_WORD = re.compile(r"[^A-Za-z0-9_]+", re.ASCII)
_RESERVED = frozenset(dir(fx.GraphModule)) | frozenset(vars(nn.Module())) | {"weight_norm", "graph", "code"}


@dataclass
class Names:
    """Which names are taken in one graph."""

    _taken: set[str] = field(default_factory=set)
    _attributes: set[str] = field(default_factory=set)
    _prefixes: set[str] = field(default_factory=set)

    def identifier(self, name: str) -> str:
        """`name` as an identifier that nobody else has."""
        return self._unused(self.identifier_of_node(name))

    def output(self, name: str) -> str:
        """`name` as it is, unless an earlier output has it."""
        return self._unused(name[:MAX_NAME_LENGTH])

    @staticmethod
    def identifier_of_node(name: str) -> str:
        word = _NOT_WORD.sub("_", name)[:MAX_NAME_LENGTH] or "value"
        return word if word[0].isalpha() else f"value_{word.lstrip('_')}"

    def attribute(self, name: str) -> str:
        """The path of submodules under which the parameter called `name` in the file will live: the same unless that can't be."""
        parts = [_NOT_WORD.sub("_", part) or "_" for part in name[:MAX_NAME_LENGTH].split(".")]
        path = ".".join(f"{part}_" if part in _RESERVED else part for part in parts)
        candidate, count = path, 0
        while self._clashes(candidate):
            count += 1
            candidate = f"{path}_{count}"
        self._attributes.add(candidate)
        self._prefixes.update(_prefixes(candidate))
        return candidate

    def _clashes(self, path: str) -> bool:
        # A name can't be both a parameter and a submodule that holds parameters.
        return path in self._attributes or path in self._prefixes or not self._attributes.isdisjoint(_prefixes(path))

    def _unused(self, name: str) -> str:
        candidate, count = name, 0
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate


def _prefixes(path: str) -> set[str]:
    parts = path.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}
