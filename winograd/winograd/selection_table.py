"""What selection.py knows. Written by `python -m benchmarks.winograd tune`; edit nothing by hand."""

from winograd.selection import Coefficients, Table

CPU = Table(
    device="cpu",
    machine="modelled: two cores with AVX-512 in halves (118 GFLOP/s each); not measured yet",
    date="",
    coefficients=Coefficients(
        call=5000.0,
        direct_vector=0.30,
        multiply_vector=0.30,
        transform_vector=0.27,
        weight_byte=0.01,
        image_byte=0.01,
    ),
)
