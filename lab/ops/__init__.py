"""The front door for other programs: their arrays, an operation a module, the operations as PyTorch's own."""
