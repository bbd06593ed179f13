"""Numba compilation for the emulator: fewer copies and fewer wrappers than `njit` makes by itself."""

from collections.abc import Callable
from typing import Any

from numba import types

from sim.jit import njit


def jit(function: Callable[..., Any] | None = None, /, *, entry: bool = False, **options: Any) -> Any:
    """`njit(cache=True)`; only an `entry` can be called from Python, which saves the others their wrappers."""
    if function is None:
        return lambda wrapped: jit(wrapped, entry=entry, **options)
    wrappers = {} if entry else {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    dispatcher = njit(cache=True, **wrappers, **options)(function)
    compile_for = dispatcher.get_call_template

    def get_call_template(args: Any, kws: Any) -> Any:
        """Constants among the arguments are no types of their own: else each would compile another copy."""
        return compile_for([types.unliteral(a) for a in args], {k: types.unliteral(a) for k, a in kws.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher
