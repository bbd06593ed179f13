"""Kernels: a folder for each family, a `.cu` and a `.py` for each kernel, found by their stems."""
