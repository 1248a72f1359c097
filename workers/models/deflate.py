"""A shorter DEFLATE stream (RFC 1951) than zlib makes of its own accord, for any reader of such streams.

zlib looks for strings that it has seen before, which is right for words and zeros. Weights of few bits are noise of few values:
strings found in it are chance, and cost more than a Huffman code for each of its bytes, which zlib uses if it is told to look for
runs of a byte alone (`Z_RLE`). A network's integers have pieces of both kinds, so each gets the strategy that suits it.
"""

import zlib
from itertools import groupby

_LEVEL, _RAW, _MEMORY = 9, -zlib.MAX_WBITS, 9
_STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_RLE)
_PIECE = 256  # bytes; with 128 to 512 a network of 270,000 weights of 2 to 4 bits came out within 1 % of this


def deflated(content: bytes) -> bytes:
    """The shortest stream of `content` found: in one strategy or the other, or in whichever is better for each piece."""
    whole = [_stream(content, strategy, zlib.Z_FINISH) for strategy in _STRATEGIES]
    return min(*whole, _by_piece(content), key=len)


def _by_piece(content: bytes) -> bytes:
    """Neighbours that one strategy suits are compressed together. After a flush a stream goes on at a whole byte, so that
    another, which never points back before its beginning, can follow."""
    pieces = [content[start : start + _PIECE] for start in range(0, len(content), _PIECE)]
    runs = [(strategy, b"".join(run)) for strategy, run in groupby(pieces, _better_strategy)]
    streams = [_stream(run, strategy, zlib.Z_SYNC_FLUSH) for strategy, run in runs]
    return b"".join([*streams, _stream(b"", zlib.Z_DEFAULT_STRATEGY, zlib.Z_FINISH)])


def _better_strategy(piece: bytes) -> int:
    return min(_STRATEGIES, key=lambda strategy: len(_stream(piece, strategy, zlib.Z_FINISH)))


def _stream(content: bytes, strategy: int, end: int) -> bytes:
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW, _MEMORY, strategy)
    return compressor.compress(content) + compressor.flush(end)
