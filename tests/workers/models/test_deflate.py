"""Streams are shorter than zlib's own, and any inflater reads them."""

import zlib

import numpy as np
import pytest

from workers.models.deflate import deflated

NUMBERS = np.random.default_rng(0)
WORDS = NUMBERS.integers(-40, 40, 4_000).astype("<i4").tobytes()  # as biases and shifts lie in a program
WEIGHTS = NUMBERS.normal(scale=1.3, size=60_000).round().clip(-4, 3).astype(np.int8).tobytes()
CONTENTS = {
    "nothing": b"",
    "one byte": b"a",
    "zeros": bytes(100_000),
    "text": b"the quick brown fox " * 500,
    "noise": NUMBERS.bytes(50_000),
    "words": WORDS,
    "weights": WEIGHTS,
    "weights between words": WORDS[:700] + WEIGHTS[:9_000] + WORDS[700:] + WEIGHTS[9_000:],
    "weights between text": b"the quick brown fox " * 500 + WEIGHTS + b"the quick brown fox " * 500,
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_any_inflater_gives_the_content_back_and_zlib_makes_nothing_shorter(content: bytes) -> None:
    short = deflated(content)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    assert inflater.decompress(short) == content
    assert inflater.eof
    assert inflater.unused_data == b""
    assert len(short) <= len(zlib.compress(content, 9, -zlib.MAX_WBITS))


@pytest.mark.parametrize("kind", ["weights", "weights between words"])
def test_weights_of_few_bits_take_less_than_zlib_makes_of_them(kind: str) -> None:
    content = CONTENTS[kind]
    assert len(deflated(content)) < 0.95 * len(zlib.compress(content, 9))


def test_strategies_change_where_that_is_shorter_than_either() -> None:
    content = CONTENTS["weights between text"]
    whole = []
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_RLE, zlib.Z_HUFFMAN_ONLY, zlib.Z_FILTERED):
        compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
        whole.append(len(compressor.compress(content) + compressor.flush()))
    assert len(deflated(content)) < min(whole)
