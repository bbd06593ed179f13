"""Other libraries' kernels, as contestants beside ours."""
