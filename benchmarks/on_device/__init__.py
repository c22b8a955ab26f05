"""The sections of `python -m benchmarks accelerator`: each gives numbers that only a device has."""
