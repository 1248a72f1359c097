"""What integers take in a file that is deflated, without deflating them."""

import math

import numpy as np
from torch import Tensor


def entropy_bits(integers: Tensor) -> float:
    """All of them together, if each takes its share: log2 of one over how often its value is among them (Shannon 1948).

    Deflated by layers, the weights of a network of 8, 4 or 3 bits took 1 to 2 % more, those of one of 2 bits 7 %.
    """
    counts = np.unique(integers.numpy(), return_counts=True)[1]
    return float((counts * (math.log2(integers.numel()) - np.log2(counts))).sum())
