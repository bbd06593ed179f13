"""Kernels, and running them on either chip."""
