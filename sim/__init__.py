"""The simulated chip: what a GPU is, what a launch moves and computes on it, and how long that takes at best."""
