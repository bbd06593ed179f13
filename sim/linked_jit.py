"""Numba compilation of many functions as one: one optimisation of the whole, where `njit` makes one of each part.

Numba links into each function all that it calls, optimises the sum and makes machine code of it: what stands ten calls
deep is compiled ten times. Here a function that only others call is lowered to LLVM code and no further; an entry links
all that it reaches, and is optimised, compiled and cached once. Nothing in them allocates an array.
"""

from collections.abc import Callable
from typing import Any

from numba import types
from numba._dynfunc import make_function
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering

from sim.cached_jit import njit


class _Part(JITCodeLibrary):  # type: ignore[misc]  # Numba's stubs are skipped
    """The code of one function, for an entry to link."""

    def finalize(self) -> None:
        self._finalized = True


class _Whole(JITCodeLibrary):  # type: ignore[misc]
    """The code of an entry and of all that it reaches."""

    _linking_libraries: list[JITCodeLibrary]

    def finalize(self) -> None:
        reached = dict.fromkeys(self._linking_libraries)
        left = list(reached)
        while left:
            new = [library for library in left.pop()._linking_libraries if library not in reached]
            reached |= dict.fromkeys(new)
            left += new
        self._linking_libraries = list(reached)
        super().finalize()


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerPart(NativeLowering):  # type: ignore[misc]
    _name = "lower_part"

    def run_pass(self, state: Any) -> bool:
        state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        lowered = state.cr.fndesc
        name = lowered.qualname.split(".")[-1]  # a function without an address, by which callers find the code
        key = make_function(lowered.lookup_module(), name, "", 0, state.cr.env, (state.library,))
        state.targetctx.insert_user_function(key, lowered, [state.library])
        state.cr = state.cr._replace(cfunc=key)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerWhole(NativeLowering):  # type: ignore[misc]
    _name = "lower_whole"

    def run_pass(self, state: Any) -> bool:
        state.library = _Whole(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return bool(super().run_pass(state))


class _Compiler(CompilerBase):  # type: ignore[misc]
    """Numba's passes, with another one for the lowering."""

    lowering: type[NativeLowering]

    def define_pipelines(self) -> list[Any]:
        manager = DefaultPassBuilder.define_nopython_pipeline(self.state)
        manager.passes = [(self.lowering if p is NativeLowering else p, text) for p, text in manager.passes]
        return [manager]


class _PartCompiler(_Compiler):
    lowering = _LowerPart


class _WholeCompiler(_Compiler):
    lowering = _LowerWhole


_COMMON: dict[str, Any] = {
    "_nrt": False,  # views belong to nobody: no code that counts references
    "error_model": "numpy",  # no branch of an exception in each division
}
_PART: dict[str, Any] = {"pipeline_class": _PartCompiler, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_WHOLE: dict[str, Any] = {"pipeline_class": _WholeCompiler, "cache": True}


def jit(function: Callable[..., Any] | None = None, /, *, entry: bool = False, **options: Any) -> Any:
    """Compiles a function; only an `entry` can be called from Python."""
    if function is None:
        return lambda wrapped: jit(wrapped, entry=entry, **options)
    options = _COMMON | (_WHOLE if entry else _PART) | options
    dispatcher = njit(**options)(function)
    compile_for = dispatcher.get_call_template

    def get_call_template(args: Any, kws: Any) -> Any:
        """Constants among the arguments are no types of their own: else each would compile another copy."""
        return compile_for([types.unliteral(a) for a in args], {k: types.unliteral(a) for k, a in kws.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher
