"""Winograd convolutions whose positions can be pruned: only those that are kept are ever multiplied.

    y = activation(conv2d(x, w) + bias + residual)          3x3 filters, stride 1, dilation 1

as F(m x m, 3x3) with m = 2, 4, 6 or 7, in plain torch, and in C++ or CUDA where the compiled library is there; `info()` says
which of them is active.
"""

from winograd import library
from winograd.integer_program import IntegerProgram
from winograd.library import info
from winograd.matrices import WinogradMatrices, winograd_matrices
from winograd.module import WinogradConv2d
from winograd.operations import count_operations
from winograd.ops import Packed, conv2d, conv2d_packed, pack_filters, pack_weights, transform_filters
from winograd.packed_conv2d import PackedConv2d
from winograd.prepare import PreparedNetwork, load, prepare
from winograd.replace_convolutions import replace_convolutions

library.load()  # over the operators, which `ops` has defined

__all__ = [
    "IntegerProgram",
    "Packed",
    "PackedConv2d",
    "PreparedNetwork",
    "WinogradConv2d",
    "WinogradMatrices",
    "conv2d",
    "conv2d_packed",
    "count_operations",
    "info",
    "load",
    "pack_filters",
    "pack_weights",
    "prepare",
    "replace_convolutions",
    "transform_filters",
    "winograd_matrices",
]
