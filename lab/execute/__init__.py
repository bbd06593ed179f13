"""From a problem to its result on either chip: plan it, bind arrays, run on a stream, capture into a graph."""

from lab.execute.bound import Bound, Copy
from lab.execute.graph import Graph, capture
from lab.execute.plan import Plan, compiling, plan

__all__ = ["Bound", "Copy", "Graph", "Plan", "capture", "compiling", "plan"]
