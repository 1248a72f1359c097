"""How fast and how exact the Winograd convolution is, beside other engines: `python -m benchmarks.winograd --help`."""
