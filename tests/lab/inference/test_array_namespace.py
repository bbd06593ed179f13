"""The model in another array namespace: as on a GPU, arrays that live there never meet NumPy's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab import inference
from lab.inference import Sampling, generation
from lab.inference.model import Llama
from lab.inference.units import Reference


class DeviceArray(np.ndarray):
    """An array that refuses NumPy arrays beside it, in arithmetic, functions and assignment, as CuPy's do."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        refuse_host(inputs)
        if "out" in options:
            options["out"] = tuple(map(inside, options["out"]))
        return np.asarray(getattr(ufunc, method)(*map(inside, inputs), **options)).view(DeviceArray)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        refuse_host(args)
        return super().__array_function__(function, types, args, options)

    def __setitem__(self, key: Any, value: Any) -> None:
        refuse_host([value])
        super().__setitem__(key, value)


def inside(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, DeviceArray) else value


def refuse_host(values: Any) -> None:
    for value in values:
        if isinstance(value, (list, tuple)):
            refuse_host(value)
        elif type(value) is np.ndarray and value.ndim:
            raise TypeError("a host array beside a device array")


class Namespace:
    """NumPy's functions for device arrays; what makes an array makes a device array."""

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if name != "asarray":
                refuse_host(args)
            return np.asarray(getattr(np, name)(*args, **options)).view(DeviceArray)

        return call


class DeviceUnit(Reference):
    """float32 matrix products of device arrays alone."""

    xp: Any = Namespace()

    def load(self, weights: Any) -> Any:
        return getattr(weights, "values", weights).view(DeviceArray)

    def __call__(self, x: Any, weights: Any) -> Any:
        assert isinstance(x, DeviceArray)
        return super().__call__(x, weights)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=3.0, top_k=9, seed=1)])
def test_arrays_stay_where_they_live(tiny_path: Path, sampling: Sampling) -> None:
    host = inference.load(tiny_path, on="reference")
    llama = Llama(host.llama.config, generation.GgufFile(tiny_path), DeviceUnit())
    device = replace(host, llama=llama)
    runs = [model.generate("in the or", max_tokens=8, sampling=sampling) for model in (host, device)]
    for run in runs:
        list(run)
    assert runs[0].tokens == runs[1].tokens
    with pytest.raises(TypeError, match="a host array beside a device array"):
        _ = llama.forward([1], llama.new_cache(1)) + np.ones(64)
