"""What the emulator says of kernels of a few lines: clean, found in every interleaving, or refused."""

import numpy as np
import pytest

import lab
from lab.emulation import Check
from lab.emulation.check import check_module
from lab.emulation.source import module_of, source_of
from sim.errors import InputError
from sim.folders import ROOT
from sim.machine import H100

KERNELS = """
__global__ void poll(volatile int*f,int*d,int*o){
    if(!blockIdx.x){*d=42;__threadfence();*f=1;} else{while(!*f);__threadfence();*o=*d;}
}
__global__ void early(int*y,int n){ if(threadIdx.x>=n)return; __syncthreads(); y[threadIdx.x]=1; }
__global__ void asm_block(int*y,int v){ asm("{.reg .b32 t; mov.b32 t,%1; st.global.b32 [%0],t;}"::"l"(y),"r"(v)); }
__device__ __noinline__ float g(float a){return a*a;}
__global__ void call(float*y){y[0]=g(y[0]);}
__global__ void hidden(int*x){ if(!blockIdx.x&&!threadIdx.x)*x=0; __syncthreads(); if(!threadIdx.x)atomicAdd(x,1); }
__global__ void expo(float*y,const float*x){ y[threadIdx.x]=expf(x[threadIdx.x]); }
__global__ void lock(int*l,int*n){
    while(atomicCAS(l,0,1)!=0); __threadfence(); n[0]=n[0]+1; __threadfence(); atomicExch(l,0);
}
__global__ void forever(volatile int*f){ while(!*f); }
__global__ void many(int*y){ __shared__ int s[256]; s[threadIdx.x]=1; y[threadIdx.x]=s[255-threadIdx.x]; }
__global__ void speak(int n){ if(threadIdx.x<2) printf("lane %d of %s: %.2f\\n", threadIdx.x, "warp", 1.5*n); }
__global__ void texture(int*y, cudaTextureObject_t t){ y[0]=tex1Dfetch<int>(t,0); }
"""


def zeros(name: str) -> lab.InOut:
    return lab.InOut(name, np.zeros(1, np.int32))


def emulate(entry: str, grid: int, block: int, *args: object, **options: object) -> Check:
    return lab.emulate(KERNELS, entry, lab.Launch(grid, block, args), **options)


def test_a_flag_that_is_polled_behind_fences_is_clean() -> None:
    check = emulate("poll", 2, 1, zeros("f"), zeros("d"), lab.Out("o", 1, "int32"))
    assert check.passed, check.hazards
    assert check.outputs["o"] == 42


@pytest.mark.parametrize("n", [32, 40])
def test_a_barrier_counts_the_threads_that_have_not_exited(n: int) -> None:
    check = emulate("early", 1, 64, lab.Out("y", 64, "int32"), n)
    assert check.passed, check.hazards
    assert (check.outputs["y"][:n] == 1).all()


def test_statements_of_one_asm_block() -> None:
    assert emulate("asm_block", 1, 1, lab.Out("y", 1, "int32"), 9).outputs["y"] == 9


def test_a_call_of_a_function() -> None:
    assert emulate("call", 1, 1, lab.InOut("y", np.array([3], np.float32))).outputs["y"] == 9


def test_a_store_that_the_same_threads_atomic_follows_is_a_race_on_every_seed() -> None:
    module = module_of(source_of(KERNELS, ROOT), ["hidden"], [], [], {}, H100)
    for seed in range(20):
        launch = lab.Launch(2, 64, [zeros("x")])
        check = check_module(module, "hidden", launch, H100, range(seed, seed + 1))
        assert [h.kind for h in check.hazards] == ["race on global memory"], seed


def test_expf_is_within_two_units_in_the_last_place() -> None:
    """CUDA C++ Programming Guide, Mathematical Functions: expf errs by 1 ulp at most, its reference by half of one."""
    x = np.linspace(-80, 80, 32).astype(np.float32)
    y = emulate("expo", 1, 32, lab.Out("y", 32, "float32"), lab.In("x", x)).outputs["y"]
    exact = np.exp(x.astype(np.float64))
    assert (abs(y - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()


def test_a_lock_within_one_warp_makes_progress() -> None:
    check = emulate("lock", 2, 32, zeros("l"), zeros("n"), seeds=3, deadline_s=60)
    assert check.passed, check.hazards
    assert check.outputs["n"] == 64


@pytest.mark.usefixtures("impatient")
def test_a_flag_that_nobody_sets_ends_as_a_livelock() -> None:
    check = emulate("forever", 1, 32, zeros("f"), seeds=1, deadline_s=60)
    assert [h.kind for h in check.hazards] == ["livelock"]


@pytest.mark.usefixtures("impatient")
def test_the_deadline_truncates_and_fails() -> None:
    check = emulate("forever", 1, 32, zeros("f"), seeds=1, deadline_s=0.0)
    assert not check.passed


def test_a_deadline_between_two_interleavings_truncates_and_fails() -> None:
    check = emulate("call", 1, 1, lab.InOut("y", np.array([3], np.float32)), seeds=3, deadline_s=0.0)
    assert check.seeds == 1
    assert check.truncated
    assert not check.passed


def test_hazards_are_counted_beyond_the_first() -> None:
    check = emulate("many", 1, 256, lab.Out("y", 256, "int32"), seeds=1)
    (race,) = [h for h in check.hazards if h.kind == "race on shared memory"]
    assert race.count == 256  # each thread reads what another one writes, and the two are met once


def test_what_is_allowed_does_not_count() -> None:
    source = "__global__ void k(int* y) { y[0] = 7; }"
    launch = lab.Launch(2, 1, [lab.Out("y", 1, "int32")])
    assert [h.kind for h in lab.emulate(source, "k", launch).hazards] == ["same value written twice"]
    check = lab.emulate(source, "k", launch, allow=["same value written twice"])
    assert check.passed
    assert [h.kind for h in check.allowed] == ["same value written twice"]


def test_printf_is_output() -> None:
    assert emulate("speak", 1, 32, 2, seeds=1).printed == ("lane 0 of warp: 3.00\n", "lane 1 of warp: 3.00\n")


def test_a_texture_is_refused_by_name_and_line() -> None:
    line = KERNELS.split("\n").index(next(text for text in KERNELS.split("\n") if "texture" in text)) + 1
    with pytest.raises(InputError, match=rf"source.cu:{line}.*`tex\.1d.*is not supported"):
        emulate("texture", 1, 1, lab.Out("y", 1, "int32"), np.uint64(1))


def test_what_each_source_line_did() -> None:
    source = "__global__ void k(const float* x, float* y) {\n y[threadIdx.x] =\n x[8 * threadIdx.x];\n}"
    arrays = lab.In("x", np.zeros(256, np.float32)), lab.Out("y", 32, "float32")
    launch = lab.Launch(1, 32, arrays)
    check = lab.emulate(source, "k", launch, seeds=1, profiled=True)
    of = {line.line: line for line in check.lines}
    assert of["source.cu:3"].sectors_per_load == 32
    assert of["source.cu:2"].sectors_per_store == 4
    assert of["source.cu:3"].lanes == 32
    assert sum(line.l2_to_sm_bytes for line in check.lines) == check.counts.l2_to_sm_bytes
