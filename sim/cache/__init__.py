"""From what SMs ask of L2 to what HBM moves: once each sector, or a walk of the requests in their order."""

from sim.cache.marks import READ, WRITTEN, Traffic, crossing, replay

__all__ = ["READ", "WRITTEN", "Traffic", "crossing", "replay"]
