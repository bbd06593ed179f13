"""The only code that needs a GPU: find it, launch on it, time it, count on it."""
