"""Compiled code: its cache is a convenience, and its workers survive a fork and several threads."""

import gc
import multiprocessing
import pickle
from pathlib import Path
from threading import Event, Thread

import ml_dtypes
import numba
import numpy as np
import pytest
from numba.core.compiler import Flags

import lab
from sim import linked_jit
from sim.cached_jit import alone, njit
from sim.jit import Late
from sim.tiles import groups

NUMBA = pickle.dumps(numba.__version__)  # what a whole index begins with


@pytest.mark.parametrize("place", ["/dev/null/nowhere", "file"])
def test_without_a_place_for_its_cache_code_is_compiled_anew(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LAB_CACHE_DIR", str(tmp_path / place))
    made = groups.load_groups  # late, or compiled by now
    function = made.__wrapped__ if isinstance(made, Late) else made.py_func
    compiled = njit(cache=True)(function)
    assert compiled.stats.cache_path.startswith(str(tmp_path / place))
    with pytest.raises(OSError, match="Not a directory"):
        compiled._cache._impl.locator.ensure_cache_path()
    simple = njit(lambda a: a + 1)
    simple._cache = compiled._cache
    assert simple(1) == 2


@pytest.mark.parametrize(
    "left",
    [b"", b"not a pickle", pickle.dumps(numba.__version__), pickle.dumps(numba.__version__) + b"clab.gone\nX\n."],
)
def test_a_cache_that_cannot_be_read_is_made_anew(left: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an earlier version named the class of an argument, or the disk was full."""
    monkeypatch.setenv("LAB_CACHE_DIR", str(tmp_path))
    made = groups.load_groups
    function = made.__wrapped__ if isinstance(made, Late) else made.py_func
    kept, simple = njit(cache=True)(function)._cache, lambda a: a + 1
    index = Path(kept._cache_file._index_path)
    index.parent.mkdir(parents=True)
    index.write_bytes(left)
    for hits in (0, 1):
        compiled = njit(simple)
        compiled._cache = kept
        assert compiled(1) == 2
        assert sum(compiled.stats.cache_hits.values()) == hits


@linked_jit.njit(cache=True)
def doubled(x):  # type: ignore[no-untyped-def]
    return 2 * x


@linked_jit.njit(cache=True)
def doubled_twice(x):  # type: ignore[no-untyped-def]
    return doubled(doubled(x))


def test_what_compiled_code_calls_is_not_compiled_by_itself() -> None:
    assert doubled_twice(3) == 12
    assert doubled.signatures == []
    assert doubled(3) == 6


def test_of_those_who_want_the_same_code_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_CACHE_DIR", str(tmp_path))

    def enter() -> None:
        with alone(product):
            passed.set()

    passed, other = Event(), Thread(target=enter)
    with alone(product):
        other.start()
        assert not passed.wait(0.1)
    other.join()
    assert passed.is_set()


def product(x: np.ndarray) -> None:
    assert np.array_equal(lab.linear(x, np.ones((16, 64), x.dtype)), np.full((1, 16), 64, x.dtype))


def test_a_forked_process_and_threads_simulate_as_well() -> None:
    x = np.ones((1, 64), ml_dtypes.bfloat16)
    product(x)
    child = multiprocessing.get_context("fork").Process(target=product, args=(x,))
    child.start()
    threads = [Thread(target=product, args=(x,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child.join(60)
    assert child.exitcode == 0


def test_garbage_is_sought_again_after_compilations_within_one_another() -> None:
    with linked_jit._uncollected():
        with linked_jit._uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_options_of_a_compilation_are_compared_as_numba_would() -> None:
    flags = Flags()
    flags.nrt, flags.error_model, flags.auto_parallel = True, "numpy", True
    assert flags.values() == {name: getattr(flags, name) for name in Flags.options}
    assert flags == flags.copy()
    assert flags != Flags()
