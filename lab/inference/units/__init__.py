"""Where the linear layers of a model run: the float32 reference, the simulated chip, a GPU (in `units.gpu`)."""

from lab.inference.units.protocol import Done, LinearUnit, Matrix, Weights, matrix_of
from lab.inference.units.reference import Reference
from lab.inference.units.simulated import SimulatedChip

__all__ = ["Done", "LinearUnit", "Matrix", "Reference", "SimulatedChip", "Weights", "matrix_of"]
