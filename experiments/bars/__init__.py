"""How near the kernels come to their bars: other libraries, and the time it takes to read the weights."""
