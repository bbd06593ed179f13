"""PTX text for one instruction: each thread loads its operands, executes the body, stores the result."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.emulator import Emulation, run
from sim.launch import Array, Launch, Role
from sim.machine import H100

_REGISTERS = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}


def elementwise(body: str, inputs: tuple[NDArray[Any], ...], output: str, **options: Any) -> NDArray[Any]:
    """What `body` leaves in %out in each thread, whose operands are %a, %b, %c; raises AssertionError on a hazard."""
    result = np.full(inputs[0].shape, 0, output)
    emulation = execute(body, inputs, result, **options)
    assert not emulation.hazards, [str(h) for h in emulation.hazards]
    return result


def execute(
    body: str, inputs: tuple[NDArray[Any], ...], result: NDArray[Any], seed: int = 0, shared: int = 0
) -> Emulation:
    """Run the body on one CTA of as many threads as there are elements."""
    threads = inputs[0].size
    arguments = tuple(Array(f"in{i}", Role.IN, a.shape, a.dtype.name) for i, a in enumerate(inputs))
    arguments += (Array("out", Role.OUT, result.shape, result.dtype.name),)
    launch = Launch("text", "text", None, None, (1, 1, 1), (threads, 1, 1), arguments, shared_bytes=shared)
    arrays = {f"in{i}": a for i, a in enumerate(inputs)} | {"out": result}
    return run(module(body, [a.itemsize for a in inputs], result.itemsize), launch, arrays, H100, seed=seed)


def module(body: str, widths: list[int], output: int) -> str:
    parameters = [f".param .u64 text_param_{i}" for i in range(len(widths) + 1)]
    lines = [
        ".version 8.5\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 buffer[];",
        f".visible .entry text({', '.join(parameters)})\n{{",
        ".reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<99>; .reg .f32 %f<99>; .reg .b64 %d<99>; .reg .b64 %at<9>;",
        ".reg .b32 %thread; mov.u32 %thread, %tid.x;",
        f".reg .{_REGISTERS[output]} %out;",
    ]
    for i, width in enumerate(widths):
        name = "%" + "abc"[i]
        lines += [
            f".reg .{_REGISTERS[width]} {name};",
            f"ld.param.u64 %at{i}, [text_param_{i}]; mad.wide.u32 %at{i}, %thread, {width}, %at{i};",
            f"ld.global.b{8 * width} {name}, [%at{i}];",
        ]
    lines += [
        body,
        f"ld.param.u64 %at8, [text_param_{len(widths)}]; mad.wide.u32 %at8, %thread, {output}, %at8;",
        f"st.global.b{8 * output} [%at8], %out;",
        "ret;\n}",
    ]
    return "\n".join(lines)
