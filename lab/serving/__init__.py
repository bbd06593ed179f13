"""A serving loop: one scheduler over a GPU, over the simulated chip, and over predicted times alone."""
