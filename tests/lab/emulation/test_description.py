"""Everything that a described launch can say reaches the kernel, and what the kernel wrote comes back."""

import ml_dtypes
import numpy as np
import pytest

import lab
from lab.emulation import Check
from sim.errors import InputError, KernelError
from tests.strategies import require_header


def run(source: str, entry: str, *args: object, block: int = 32, **launch: object) -> Check:
    options = {name: launch.pop(name) for name in ("seeds", "reference", "includes", "defines") if name in launch}
    return lab.emulate(source, entry, lab.Launch(grid=1, block=block, args=args, **launch), **{"seeds": 2, **options})


def test_a_template_with_scalars_of_every_type() -> None:
    source = """
        template <int N> __global__ void k(double* y, char a, short b, int c, long long d, float e, double f, bool g) {
            y[threadIdx.x] = N * (a + b + c + d + e + f + g);
        }"""
    values = (np.int8(1), np.int16(2), np.int32(3), np.int64(4), np.float32(5), np.float64(6), np.bool_(True))
    check = run(source, "k<2>", lab.Out("y", 32, "float64"), *values)
    assert check.passed
    assert (check.outputs["y"] == 44).all()


def test_python_numbers_take_the_size_of_their_parameter() -> None:
    source = "__global__ void k(double* y, long long a, double b, bool c) { y[threadIdx.x] = a + b + c; }"
    check = run(source, "k", lab.Out("y", 32, "float64"), 1 << 40, 0.5, True)
    assert (check.outputs["y"] == (1 << 40) + 1.5).all()


def test_a_struct_by_value_with_pointers_arrays_and_a_struct_inside() -> None:
    source = """
        struct Inner { char c; double d; };
        struct Outer { short s; const float* x; float w[3]; Inner inner; };
        __global__ void k(Outer o, float* y) {
            int i = threadIdx.x;
            y[i] = o.s * o.x[i] + o.w[0] + o.w[2] + o.inner.c + o.inner.d;
        }"""
    x = np.arange(32, dtype=np.float32)
    inner = lab.Struct(np.int8(4), np.float64(0.5))
    outer = lab.Struct(np.int16(2), lab.In("x", x), np.array([1, 99, 3], np.float32), inner)
    check = run(source, "k", outer, lab.Out("y", 32, "float32"))
    np.testing.assert_array_equal(check.outputs["y"], 2 * x + 8.5)


def test_an_array_of_pointers() -> None:
    source = "__global__ void k(float* const* rows) { rows[1][threadIdx.x] = rows[0][threadIdx.x] + 1; }"
    x = np.arange(32, dtype=np.float32)
    check = run(source, "k", lab.In("rows", [lab.In("x", x), lab.Out("y", 32, "float32")]))
    np.testing.assert_array_equal(check.outputs["y"], x + 1)


def test_constant_and_device_variables_are_set_and_read_back() -> None:
    source = """
        namespace here { __constant__ int table[32]; __device__ int total = 5; }
        __global__ void k() { atomicAdd(&here::total, here::table[threadIdx.x]); }"""
    table = np.arange(32, dtype=np.int32)
    total = lab.Out("here::total", 1, "int32")
    check = run(source, "k", symbols=[lab.In("here::table", table), total])
    assert check.outputs["here::total"] == 5 + table.sum()


def test_launches_in_order_share_arrays_and_variables() -> None:
    source = """
        __device__ int seen;
        __global__ void first(int* y) { y[threadIdx.x] = threadIdx.x; if (!threadIdx.x) seen = 7; }
        __global__ void second(const int* y, int* z) { z[threadIdx.x] = y[31 - threadIdx.x] + seen; }"""
    y = lab.InOut("y", np.ma.masked_all(32, np.int32))
    z = lab.Out("z", 32, "int32")
    launches = [lab.Launch(1, 32, [y]), lab.Launch(1, 32, [y, z], entry="second")]
    check = lab.emulate(source, "first", launches, seeds=2)
    assert check.passed, check.hazards
    np.testing.assert_array_equal(check.outputs["z"], 38 - np.arange(32))


def test_what_is_masked_was_never_set() -> None:
    source = "__global__ void k(const int* x, int* y) { y[threadIdx.x] = x[threadIdx.x]; }"
    x = np.ma.array(np.arange(32, dtype=np.int32), mask=np.arange(32) == 9)
    check = run(source, "k", lab.In("x", x), lab.Out("y", 32, "int32"))
    assert [h.kind for h in check.hazards] == ["uninitialised output"]
    whole = np.ma.array(x.data, mask=np.zeros(32, bool))
    assert run(source, "k", lab.In("x", whole), lab.Out("y", 32, "int32")).passed


def test_types_that_numpy_lacks() -> None:
    source = """
        #include <cuda_bf16.h>
        __global__ void k(const __nv_bfloat16* x, __nv_bfloat16* y) {
            y[threadIdx.x] = __hadd(x[threadIdx.x], x[0]);
        }"""
    x = np.arange(32).astype(ml_dtypes.bfloat16)
    require_header("cuda_bf16.h")
    check = run(source, "k", lab.In("x", x + x), lab.Out("y", 32, "bfloat16"))
    assert (check.outputs["y"] == x + x).all()


TILE = """
    struct alignas(64) Map { char bytes[128]; };
    __device__ void copy(float* y, const Map* map) {
        __shared__ alignas(128) float tile[4][8];
        __shared__ unsigned long long bar;
        unsigned b = __cvta_generic_to_shared(&bar), t = __cvta_generic_to_shared(tile);
        if (threadIdx.x == 0) {
            asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(b) : "memory");
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
            asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], 128;" ::"r"(b) : "memory");
            asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                         " [%0], [%1, {0, 1}], [%2];" ::"r"(t), "l"(map), "r"(b) : "memory");
        }
        __syncthreads();
        asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.shared.b64 p, [%0], 0; @!p bra again;}"
                     ::"r"(b) : "memory");
        y[threadIdx.x] = tile[threadIdx.x / 8][threadIdx.x % 8];
    }
    __global__ void direct(const __grid_constant__ Map map, float* y) { copy(y, &map); }
    __global__ void behind(const Map* maps, float* y) { copy(y, maps + 1); }
    __constant__ Map held;
    __global__ void constant(float* y) { copy(y, &held); }
"""


@pytest.mark.parametrize("where", ["direct", "behind", "constant"])
def test_an_array_that_is_reached_only_through_a_tensor_map(where: str) -> None:
    x = np.arange(48, dtype=np.float32).reshape(6, 8)
    map_ = lab.TensorMap(lab.In("x", x), box=(4, 8))
    y = lab.Out("y", (4, 8), "float32")
    args = {"direct": [map_, y], "behind": [lab.In("maps", [map_, map_]), y], "constant": [y]}[where]
    symbols = [lab.In("held", [map_])] if where == "constant" else []
    check = run(TILE, where, *args, symbols=symbols)
    assert check.passed, [h.hazard.message for h in check.hazards]
    np.testing.assert_array_equal(check.outputs["y"], x[1:5])


def test_dynamic_shared_memory_and_a_macro() -> None:
    source = """
        extern __shared__ int buffer[];
        __global__ void k(int* y) {
            buffer[threadIdx.x] = AMOUNT; __syncthreads(); y[threadIdx.x] = buffer[blockDim.x - 1 - threadIdx.x];
        }"""
    check = run(source, "k", lab.Out("y", 64, "int32"), block=64, shared=256, defines={"AMOUNT": 3})
    assert check.passed
    assert (check.outputs["y"] == 3).all()


PTX = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry _Z4fillPi(.param .u64 p)
{
.reg .b64 %rd<3>;
.reg .b32 %r<2>;
ld.param.u64 %rd1, [p];
mov.u32 %r1, %tid.x;
mad.wide.u32 %rd2, %r1, 4, %rd1;
st.global.u32 [%rd2], %r1;
ret;
}
"""


def test_ptx_as_it_is_with_its_entry_by_either_name() -> None:
    for entry in ("_Z4fillPi", "fill"):
        check = run(PTX, entry, lab.Out("y", 32, "int32"))
        np.testing.assert_array_equal(check.outputs["y"], np.arange(32))


def test_inputs_are_drawn_anew_for_each_interleaving_and_compared_with_the_reference() -> None:
    source = "__global__ void k(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x] * (x[0] > 0.5f); }"
    drawn = []

    def launch(rng: np.random.Generator) -> lab.Launch:
        drawn.append(rng.random(32, np.float32))
        return lab.Launch(1, 32, [lab.In("x", drawn[-1]), lab.Out("y", 32, "float32")])

    check = lab.emulate(source, "k", launch, seeds=8, reference=lambda arrays: {"y": (arrays["x"], 0.0)})
    assert len({x.tobytes() for x in drawn}) == 8
    wrong = sum(int((x != 0).sum()) for x in drawn[1:] if x[0] <= 0.5)  # the first call only looks at the launch
    assert not check.passed
    assert check.differences["y"].mismatches == wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "takes 1 parameters; the launch has 0 args"),
        ([np.int32(3)], "argument 1 of k has 4 B; its parameter has 8"),
        ([lab.In], "argument 1 of k is a type"),
        ([lab.Struct(3)], "pass a NumPy scalar"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(arguments: list[object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run('extern "C" __global__ void k(int* y) {}', "k", *arguments)


def test_a_source_that_does_not_compile_keeps_the_compilers_lines() -> None:
    with pytest.raises(KernelError, match=r"source.cu\(1\): error"):
        run("__global__ void k(int* y) { y = 1 }\n", "k", None)


def test_an_entry_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="has no nothing; it has _Z4fillPi"):
        run(PTX, "nothing", lab.Out("y", 32, "int32"))
