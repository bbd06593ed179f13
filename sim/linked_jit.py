"""Numba compilation of many functions as one: one optimisation of the whole, where `njit` makes one of each part.

Numba links into each function all that it calls, optimises the sum and makes machine code of it: what stands ten calls
deep is compiled ten times. Here what compiled code calls is lowered to LLVM code and no further; what Python calls
links all that it reaches, and is optimised, compiled and cached once.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba import types
from numba._dynfunc import make_function
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering

from sim import cached_jit


class _Part(JITCodeLibrary):  # type: ignore[misc]  # Numba's stubs are skipped
    """The code of one function, for an entry to link."""

    _linking_libraries: list[JITCodeLibrary]
    _joined: Any = None

    def finalize(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def own(self) -> Any:
        """The LLVM module of the function alone."""
        return super()._get_module_for_linking()

    def _get_module_for_linking(self) -> Any:
        """The module with all that it reaches, for code that Numba links by itself, such as that of a `prange`."""
        if self._joined is None:
            self._joined = self.own().clone()
            _link(self._joined, self)
        return self._joined


class _Whole(JITCodeLibrary):  # type: ignore[misc]
    """The code of an entry and of all that it reaches."""

    _linking_libraries: list[JITCodeLibrary]

    def finalize(self) -> None:
        _link(self._final_module, self)
        self._linking_libraries = []
        super().finalize()


def _link(module: Any, library: JITCodeLibrary) -> None:
    """Link into a module all that a library reaches."""
    reached = dict.fromkeys(library._linking_libraries)
    left = list(reached)
    while left:
        new = [found for found in left.pop()._linking_libraries if found not in reached]
        reached |= dict.fromkeys(new)
        left += new
    for found in reached:
        library._reload_init.update(found._reload_init)
        part = found.own() if isinstance(found, _Part) else found._get_module_for_linking()
        module.link_in(part, preserve=True)


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


_PART: dict[str, Any] = {"pipeline_class": _PartCompiler, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_WHOLE: dict[str, Any] = {"pipeline_class": _WholeCompiler, "cache": True}
_PLAIN: dict[str, Any] = {
    "_nrt": False,  # views belong to nobody: no code that counts references
    "error_model": "numpy",  # no branch of an exception in each division
}


def njit(function: Callable[..., Any] | None = None, /, *, cache: bool = False, **options: Any) -> Any:
    """numba.njit of what Python and compiled code may call, linked as said above where `cache`."""
    if function is None:
        return lambda wrapped: njit(wrapped, cache=cache, **options)
    if not cache or options.get("inline") == "always" or options.get("parallel"):
        return cached_jit.njit(cache=cache, **options)(function)
    whole, part = _whole(function, options), _part(function, options)
    whole.get_call_template, whole.get_overload = part.get_call_template, part.get_overload
    return whole


def jit(function: Callable[..., Any] | None = None, /, *, entry: bool = False, **options: Any) -> Any:
    """Compiles a function that allocates no array; only an `entry` can be called from Python."""
    if function is None:
        return lambda wrapped: jit(wrapped, entry=entry, **options)
    options = _PLAIN | options
    return _whole(function, options) if entry else _part(function, options)


def _whole(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    dispatcher = cached_jit.njit(**_WHOLE, **options)(function)
    compile_alone = dispatcher.compile

    def compile(signature: Any) -> Any:
        """Of processes that want the same code at once one compiles it, and the others read what it left."""
        with cached_jit.alone(function), _uncollected():
            return compile_alone(signature)

    dispatcher.compile = compile
    return dispatcher


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for garbage: among the millions of objects of a compilation, few of them any, it takes a fifth."""
    if enabled := gc.isenabled():
        gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _part(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    dispatcher = cached_jit.njit(**_PART, **options)(function)
    compile_for = dispatcher.get_call_template

    def get_call_template(args: Any, kws: Any) -> Any:
        """Constants among the arguments are no types of their own: else each would compile another copy."""
        return compile_for([types.unliteral(a) for a in args], {k: types.unliteral(a) for k, a in kws.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher
