"""`njit` as simulations use it; Numba itself is loaded when the first of its functions is called.

Loading it takes longer than explaining a problem, and what lists, explains and ranks kernels imports their simulations
without running any.
"""

from collections.abc import Callable
from functools import update_wrapper
from threading import RLock
from types import ModuleType
from typing import Any

__all__ = ["linked_jit", "njit", "overload"]

_settling = RLock()
_overloads: list[tuple[Callable, dict[str, Any], Callable]] = []


class Late:
    """A function of which `make` makes compiled code, once it is called."""

    def __init__(self, function: Callable, make: Callable[[Callable], Any]) -> None:
        update_wrapper(self, function)
        self._function = function
        self._make = make
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(*arguments)

    @property
    def compiled(self) -> Any:
        """Numba's dispatcher; those of all such functions that it knows take their places, in its module and others."""
        with _settling:
            if self._compiled is None:
                self._compiled = self._make(self._function)
                import numba  # loaded on first use, as said above

                while _overloads:
                    function, options, implementation = _overloads.pop()
                    numba.extending.overload(function, **options)(implementation)
                known = self._function.__globals__
                for names in (known, *[vars(value) for value in known.values() if isinstance(value, ModuleType)]):
                    names.update({name: value.compiled for name, value in names.items() if isinstance(value, Late)})
            return self._compiled


def njit(*function: Callable, **options: Any) -> Any:
    """numba.njit; where `cache`, with the cache of sim/cached_jit.py and linked as sim/linked_jit.py says."""

    def make(function: Callable) -> Any:
        from sim.linked_jit import njit

        return njit(**options)(function)

    return _late(function, make)


def linked_jit(*function: Callable, **options: Any) -> Any:
    """`jit` of sim/linked_jit.py."""

    def make(function: Callable) -> Any:
        from sim.linked_jit import jit

        return jit(**options)(function)

    return _late(function, make)


def overload(function: Callable, **options: Any) -> Callable[[Callable], Callable]:
    """numba.extending.overload."""

    def keep(implementation: Callable) -> Callable:
        _overloads.append((function, options, implementation))
        return implementation

    return keep


def _late(functions: tuple[Callable, ...], make: Callable[[Callable], Any]) -> Any:
    """The one function, or without one what decorates it."""
    return Late(functions[0], make) if functions else lambda function: Late(function, make)
