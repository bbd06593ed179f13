"""Functions, recursion, function pointers, the device runtime, and arithmetic that takes several operations."""

from tests.small import LANES, OUTSIDE, SHARED, UNSET, Small

ASSERT = "assertion failed"
KERNELS = [
    Small(
        "function",
        "__shared__ int s[64]; s[t] = twice(x[t]); __syncthreads(); y[t] = s[63 - t];",
        (("__syncthreads();", "", SHARED), ("twice(x[t])", "twice(x[t + 250])", OUTSIDE)),
        before="__device__ __noinline__ int twice(int a) { return 2 * a; }",
    ),
    Small(
        "function_with_a_barrier",
        "__shared__ int s[64]; put(s, x[t]); y[t] = s[63 - t];",
        (("put(s, x[t]);", "s[t] = x[t];", SHARED), ("63 - t", "64 - t", OUTSIDE)),
        before="__device__ __noinline__ void put(int* s, int v) { s[threadIdx.x] = v; __syncthreads(); }",
    ),
    Small(
        "recursion",
        "y[t] = fibonacci(t % 9);",
        (("t % 9", "x[t + 240] % 9", OUTSIDE),),
        before="__device__ __noinline__ int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }",
    ),
    Small(
        "function_pointers",
        "y[t] = table[x[t] & 1](t);",
        (("x[t] & 1", "x[t] & 3", "null pointer"),),
        before="""typedef int (*F)(int); __device__ int add(int a) { return a + 1; } __device__ int twice(int a) { return 2 * a; }
        __device__ F table[2] = {add, twice};""",
    ),
    Small(
        "assertion",
        "assert(x[t] >= 0); y[t] = x[t];",
        (("x[t] >= 0", "x[t] > 1000", ASSERT),),
    ),
    Small(
        "allocation",
        "int* p = (int*)malloc(16); p[0] = x[t]; p[3] = 1; y[t] = p[0] + p[3]; free(p);",
        (("p[3] = 1;", "", UNSET), ("malloc(16)", "malloc(size_t(1) << 30)", "null pointer")),
    ),
    Small(
        "local_array",
        "int a[8]; for (int i = 0; i < 8; ++i) a[i] = x[8 * (t % 8) + i]; y[t] = a[x[t] & 7];",
        (("8 * (t % 8) + i", "8 * t + i", OUTSIDE),),
    ),
    Small(
        "elementary_functions",
        "float v = x[t] * 0.01f; y[t] = int(1000 * (expf(v) + log1pf(v) + fmodf(v, 0.7f) + __fadd_rz(v, 1e-7f) + pow(double(v) + 1, 0.3)));",
        (("x[t] * 0.01f", "x[t + 200] * 0.01f", OUTSIDE),),
    ),
    Small(
        "printing",
        r'if (t < 2) printf("%d\n", x[t]); y[t] = 1;',
        (("x[t]", "x[t + 256]", OUTSIDE),),
    ),
    Small(
        "dot_products_of_bytes",
        "__shared__ int s[32]; s[t] = __dp4a(x[t], x[t + 1], 0); __syncwarp(); y[t] = s[31 - t];",
        (("__syncwarp();", "", LANES),),
        block=32,
    ),
    Small(
        "long_multiplication",
        "unsigned __int128 a = x[t]; a = a * a * a * a * a + (a << 70); y[t] = int(a >> 64);",
        (("x[t]", "x[8 * t]", OUTSIDE),),
    ),
]  # fmt: skip
