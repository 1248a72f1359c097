"""How a convolution's weights lie in flash memory, and the C code that unpacks them."""

from dataclasses import dataclass

import numpy as np
import torch

from workers.fixed_point.c_types import INT16, INT32, INT64, Constant, CType, Integers, code, constant, packed
from workers.fixed_point.network import Convolution
from workers.fixed_point.pack_weights import bytes_of_word, packed_bytes, packed_codes


@dataclass(frozen=True)
class StoredWeights:
    """Filters [K, N] as they lie in flash memory, and how the C code makes a row of numbers of them."""

    constants: tuple[Constant, ...]
    row_type: CType  # of the weights as they are multiplied
    row_length: int  # numbers of a row, with zeros behind them
    unpack: str  # C code: from `weights` and, if there are any, `shifts` of filter number `filter_number` to `filter`
    is_plain: bool  # whether rows in flash are what is multiplied, so that nothing needs unpacking
    description: str


def store_weights(operation: Convolution, *, is_depthwise: bool) -> StoredWeights:
    """Weights in the fewest bytes: aligned already, or narrow with the shifts that align them when they are unpacked.

    The order is [K][R][S][C/g], that of patches; of depthwise convolutions [R][S][K], one row for everything.
    """
    narrow, aligned = (
        np.ascontiguousarray(weight.permute(0, 2, 3, 1).numpy().reshape(len(weight), -1))
        for weight in (operation.weight, operation.aligned_weight)
    )
    filters, channels = operation.shifts.shape
    if is_depthwise:
        narrow, aligned = narrow.T.reshape(1, -1), aligned.T.reshape(1, -1)
    narrow_bits, aligned_bits = (_stored_bits(weight) for weight in (narrow, aligned))
    is_shifted = narrow.shape[0] * _row_bytes(narrow, narrow_bits) + filters * channels < (
        aligned.shape[0] * _row_bytes(aligned, aligned_bits)
    )
    stored, bits = (narrow, narrow_bits) if is_shifted else (aligned, aligned_bits)
    row_type = next(kind for kind in (INT16, INT32, INT64) if kind.bits >= _stored_bits(aligned))
    length, padded = stored.shape[1], -(-stored.shape[1] // 8) * 8
    order = "[R][S][K]" if is_depthwise else "[K][R][S][C]"
    constants = [_weights_constant(stored, bits, order)]
    unpack = _unpack(bits, length, row_type)
    if is_shifted:
        shifts = operation.shifts.numpy()
        constants.append(constant("shifts", shifts, "What aligns weights of each filter and channel, [K][C]"))
        period = filters if is_depthwise else channels  # numbers after which the same shifts come again
        row_shifts = "shifts" if is_depthwise else f"(shifts + filter_number * {channels})"
        unpack += _SHIFT.format(
            taps=length // period, period=period, type=row_type.name, row_shifts=row_shifts,
            bits=min(64, max(32, row_type.bits)),
        )  # fmt: skip
    aligned_text = ", shifted when unpacked" if is_shifted else ""
    return StoredWeights(
        constants=tuple(constants),
        row_type=row_type,
        row_length=padded,
        unpack=unpack,
        is_plain=bits >= 8 and not is_shifted,
        description=f"{bits}-bit weights{aligned_text}",
    )


_SHIFT = """\
for (int32_t tap = 0; tap < {taps}; tap++) {{
    for (int32_t c = 0; c < {period}; c++) {{
        filter[tap * {period} + c] = ({type})shift_left{bits}(filter[tap * {period} + c], {row_shifts}[c]);
    }}
}}
"""

_UNPACK_PLAIN = """\
for (int32_t i = 0; i < $LENGTH; i++) {
    filter[i] = weights[filter_number * $LENGTH + i];
}
"""

_UNPACK_4 = """\
for (int32_t i = 0; i < $BYTES; i++) {
    const int32_t two = weights[filter_number * $BYTES + i];
    filter[i] = ($TYPE)(((two & 15) ^ 8) - 8);
    filter[i + $BYTES] = ($TYPE)((((two >> 4) & 15) ^ 8) - 8);
}
"""

_UNPACK_2 = """\
for (int32_t i = 0; i < $BYTES; i++) {
    const int32_t four = weights[filter_number * $BYTES + i];
    filter[i] = ($TYPE)(((four & 3) ^ 2) - 2);
    filter[i + $BYTES] = ($TYPE)((((four >> 2) & 3) ^ 2) - 2);
    filter[i + 2 * $BYTES] = ($TYPE)((((four >> 4) & 3) ^ 2) - 2);
    filter[i + 3 * $BYTES] = ($TYPE)((((four >> 6) & 3) ^ 2) - 2);
}
"""

_UNPACK_3 = """\
for (int32_t i = 0; i < $WORDS; i++) {
    const uint8_t *three = weights + filter_number * $BYTES + i;
    const int32_t eight = three[0] | ((int32_t)three[$WORDS] << 8) | ((int32_t)three[2 * $WORDS] << 16);
    for (int32_t part = 0; part < 8; part++) {
        filter[i + part * $WORDS] = ($TYPE)(((eight >> (3 * part)) & 7) - 4);
    }
}
"""


def _unpack(bits: int, length: int, row_type: CType) -> str:
    template = {2: _UNPACK_2, 3: _UNPACK_3, 4: _UNPACK_4}.get(bits, _UNPACK_PLAIN)
    row_bytes = packed_bytes(length, bits)
    return code(template, LENGTH=length, BYTES=row_bytes, WORDS=row_bytes // bytes_of_word(bits), TYPE=row_type.name)


def _weights_constant(stored: Integers, bits: int, order: str) -> Constant:
    if bits >= 8:
        return Constant("weights", CType(bits, True), stored.reshape(-1), f"Weights {order}")
    if bits == 3:
        three_in_bytes: Integers = packed_codes(torch.from_numpy(stored), bits).numpy()
        return Constant("weights", CType(8, False), three_in_bytes.reshape(-1), f"Weights {order}, 8 in 3 bytes")
    comment = f"Weights {order}, {8 // bits} in a byte"
    return Constant("weights", CType(8, False), packed(stored, bits).reshape(-1), comment)


def _stored_bits(rows: Integers) -> int:
    """2, 3, 4, 8, 16, 32 or 64: what holds all of them in the fewest bytes. Short rows don't fill the words that 3 bits take."""
    least, most = int(rows.min()), int(rows.max())
    holds = (bits for bits in (2, 3, 4, 8, 16, 32, 64) if -(1 << (bits - 1)) <= least and most < 1 << (bits - 1))
    return min(holds, key=lambda bits: _row_bytes(rows, bits))


def _row_bytes(rows: Integers, bits: int) -> int:
    return packed_bytes(int(rows.shape[1]), bits)
