"""The article's figures, each beside theory, the simulated chip and what cards measured, and a verdict made of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import log10

from experiments import markdown
from experiments.lookup import MOVERS, is_peer, pace, question_of, read_rate, stale
from experiments.markdown import figure
from lab.kernel import RANKING_CLOCK
from lab.problems import MODELS, Attention, Linear, Model, Problem
from lab.record import Archive, Record, is_chain
from sim.machine import A100, H100, H200, MACHINES, Machine

HEADINGS = ("", "the article", "theory", "simulated", "measured", "verdict")
HOLDS, LOOSE, FAILS = "holds", "loose", "does not hold"
EXACT = 1.05  # times the article's figure, or one over it, within which a figure holds
ROUGH = 2.5  # and within which it is loose

PREFILL, DECODE = Linear(2048, 4096, 4096), Linear(1, 4096, 4096)
BATCH = 64
THIRTEEN = replace(MODELS["llama-2-13b"], context=2048)
CACHE = Attention(1, 32, 32, 128, 1, 8192)  # one layer of 32
LAYERS = 32
MEGA, GIGA, TERA = 1e6, 1e9, 1e12


@dataclass(frozen=True)
class Claim:
    """A line of the table; figures as its cells show them, "" where a source gives none."""

    says: str
    article: str
    theory: str
    verdict: str
    simulated: str = ""
    measured: str = ""

    @property
    def cells(self) -> list[str]:
        return [
            each or "-" for each in (self.says, self.article, self.theory, self.simulated, self.measured, self.verdict)
        ]


def table(past: Archive) -> str:
    """All claims in the article's order, and where the measured figures come from."""
    sources: set[str] = set()
    seen = Seen(past, sources)
    claims = [claim for make in _CLAIMS for claim in make(seen)]
    counts = {word: sum(claim.verdict.startswith(word) for claim in claims) for word in (HOLDS, LOOSE, FAILS)}
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    parts = [markdown.table(HEADINGS, [claim.cells for claim in claims]), f"Of {len(claims)} figures: {said}."]
    return "\n\n".join([*parts, *([markdown.measured_on(sources)] if sources else [])])


def judged(found: float, article: float, why: str = "") -> str:
    """Whether a figure is what the article says, about it, or not."""
    times = max(found / article, article / found)
    word = HOLDS if times <= EXACT else LOOSE if times <= ROUGH else FAILS
    return f"{word}: {why}" if why else word


@dataclass(frozen=True)
class Seen:
    """The records, and the sources of all figures that were taken from them."""

    past: Archive
    sources: set[str]

    def times(self, problem: Problem, kernels: Sequence[str] = (), peers: bool = False) -> dict[str, Record]:
        """On each card the time in a graph of our fastest kernel, or of some, or with `peers` of the fastest of all.

        Of a kernel with a schedule the newest time counts.
        """
        newest: dict[str, Record] = {}
        for record in self.past.where(on="gpu", problem=problem.as_dict(), clock=RANKING_CLOCK).records:
            moves = record.kernel is None or record.kernel in MOVERS
            wanted = not moves and (record.kernel in kernels if kernels else peers or not is_peer(record))
            if wanted and record.us and not is_chain(record) and pace(record) == "sustained":
                newest[repr((record.machine, record.kernel, record.schedule))] = record
        found: dict[str, Record] = {}
        for record in sorted(newest.values(), key=lambda r: (r.machine, r.us or 0.0)):
            if record.machine not in found and not stale(record):
                found[record.machine] = record
        self.sources.update(record.source for record in found.values())
        return found

    def counted(self, problem: Problem, kernel: str) -> dict[str, Record]:
        """On each card the newest hardware counters of a kernel."""
        found = {
            r.machine: r
            for r in self.past.where(on="gpu", problem=problem.as_dict(), kernel=kernel).records
            if r.counters
        }
        self.sources.update(record.source for record in found.values())
        return found

    def simulated(self, problem: Problem, kernel: str) -> Record | None:
        """The newest counts of the tile simulator."""
        same = [r for r in self.past.where(problem=problem.as_dict(), kernel=kernel).records if r.simulated]
        return same[-1] if same else None

    def rates(self, machine: Machine) -> tuple[float, float] | None:
        """(FLOP/s of the fastest bf16 GEMM, B/s of the largest read) that such a card was seen to reach."""
        read, source = read_rate(self.past, machine.name)
        timed = [r for r in self.past.where(on="gpu", machine=machine.name).records if r.us and _is_gemm(r)]
        if not timed or not read:
            return None
        best = max(timed, key=lambda r: question_of(r).flops / (r.us or 1.0))
        self.sources.update((source, best.source))
        return question_of(best).flops / (best.us or 1.0) * MEGA, read


def _is_gemm(record: Record) -> bool:
    problem = record.problem or {}
    return problem.get("kind") == "linear" and problem.get("weights") == "bf16" and int(str(problem["m"])) >= 2048


def _faster(slow: dict[str, Record], fast: dict[str, Record]) -> tuple[dict[str, float], dict[str, float]]:
    """On each card that timed both, the one's time over the other's: (measured, predicted)."""
    both = [name for name in slow if name in fast]
    times = {name: (slow[name].us or 0.0) / (fast[name].us or 1.0) for name in both}
    known = [name for name in both if slow[name].predicted_us and fast[name].predicted_us]
    return times, {name: (slow[name].predicted_us or 0.0) / (fast[name].predicted_us or 1.0) for name in known}


def _cards(figures: dict[str, float], unit: str = "") -> str:
    """A figure for each card."""
    return ", ".join(f"{figure(value)}{unit} ({MACHINES[name].title.split()[0]})" for name, value in figures.items())


def _intensity(counts: dict[str, float | None] | dict[str, int | None] | None, problem: Problem) -> float | None:
    moved = [(counts or {}).get(name) for name in ("hbm_read_bytes", "hbm_write_bytes")]
    return problem.flops / sum(each or 0 for each in moved) if moved[0] else None


def _shapes(seen: Seen) -> Iterator[Claim]:
    """Same math, two shapes."""
    weights = DECODE.bytes["weights"]
    counts = seen.simulated(DECODE, "gemv_vectorized")
    counted_bytes = ((counts.simulated if counts else None) or {}).get("hbm_read_bytes") or 0
    read = {
        name: r.counters["hbm_read_bytes"] / MEGA
        for name, r in seen.counted(DECODE, "gemv_vectorized").items()
        if r.counters
    }
    yield Claim(
        "A 4,096 x 4,096 layer's weights in 16 bits", "33 MB", f"{weights / MEGA:.1f} MB", judged(weights / MEGA, 33),
        f"{counted_bytes / MEGA:.1f} MB read" if counted_bytes else "",
        _cards(read, " MB read"),
    )  # fmt: skip
    for problem, kernels, article in (
        (PREFILL, ("gemm_cluster", "gemm_wgmma"), 2048),
        (DECODE, ("gemv_vectorized",), 1),
    ):
        alone, whole = problem.weight_intensity or 0.0, problem.flops / problem.bytes["total"]
        one = next((found for kernel in kernels if (found := seen.simulated(problem, kernel))), None)
        simulated = _intensity(one.simulated, problem) if one else None
        counted = {
            name: _intensity(dict(r.counters or {}), problem) or 0.0
            for kernel in kernels
            for name, r in seen.counted(problem, kernel).items()
        }
        why = "the activations are as many bytes as the weights" if whole < alone / EXACT else ""
        yield Claim(
            f"FLOPs a byte with {problem.m:,} token{'s' * (problem.m > 1)}", f"{article:,}",
            f"{figure(alone)} of weights alone, {figure(whole)} of all", judged(whole, article, why),
            figure(simulated) if simulated else "", _cards(counted),
        )  # fmt: skip
    share = PREFILL.bytes["activations"] / PREFILL.bytes["weights"]
    small = HOLDS if share < 0.1 else FAILS
    yield Claim("Prefill's activations are small beside the weights", "small", f"{figure(share)} times them", small)
    apart = log10((PREFILL.flops / PREFILL.bytes["total"]) / (DECODE.flops / DECODE.bytes["total"]))
    yield Claim("Orders of magnitude between both", "3", figure(apart), judged(apart, 3))


def _ridges(seen: Seen) -> Iterator[Claim]:
    """The ridge and who climbs it."""
    for machine, unit, article in ((H100, "bf16", 295), (A100, "fp32", 13), (A100, "bf16", 200)):
        ridge = machine.ridge(unit)
        rates = seen.rates(machine) if unit == "bf16" else None
        reached = (
            f"{figure(rates[0] / rates[1])}, of {figure(rates[0] / TERA)} TFLOP/s and {figure(rates[1] / TERA)} TB/s"
            if rates
            else ""
        )
        yield Claim(
            f"The {machine.title.split()[0]}'s ridge, {unit}, FLOP/B",
            f"{article}",
            figure(ridge),
            judged(ridge, article),
            "",
            reached,
        )
    path = {
        name: machine.ridge("bf16") for name, machine in MACHINES.items() if name in ("a100", "h100", "h200", "b200")
    }
    falls = [f"it falls from the {a.upper()} to the {b.upper()}" for a, b in pairwise(path) if path[b] < path[a]]
    own = {m.name: rates[0] / rates[1] for m in (H100, H200) if (rates := seen.rates(m))}
    yield Claim(
        "The ridge climbs from chip to chip", "climbs", ", ".join(f"{n.upper()} {r:.0f}" for n, r in path.items()),
        f"{FAILS}: {' and '.join(falls)}" if falls else HOLDS, "", _cards(own),
    )  # fmt: skip
    below = {
        name: machine.ridge("bf16") / (DECODE.flops / DECODE.bytes["total"])
        for name, machine in (("h100", H100), ("h200", H200))
    }
    yield Claim(
        "Decode lies so many times below the ridge",
        "300",
        _cards(below),
        judged(below["h100"], 300, "206 on the H200" if round(below["h200"]) == 206 else ""),
    )
    used = {
        name: DECODE.flops / MACHINES[name].peak("bf16") / (r.us or 1.0) * MEGA
        for name, r in seen.times(DECODE).items()
    }
    busy = max(used.values(), default=0.0)
    yield Claim(
        "In decode the tensor cores have essentially nothing to do", "0%",
        _cards({name: 100 / times for name, times in below.items()}, "% at most"), HOLDS if busy < 0.01 else FAILS, "",
        _cards({name: 100 * share for name, share in used.items()}, "%"),
    )  # fmt: skip


def _no_kernel_serves_both(seen: Seen) -> Iterator[Claim]:
    """The wrong kernel in each phase."""
    for problem, wrong in ((DECODE, ("gemm_cluster", "gemm_wgmma")), (PREFILL, ("gemv_vectorized",))):
        slower, predicted = _faster(seen.times(problem, wrong), seen.times(problem))
        phase = "decode by a GEMM's kernel" if problem.m == 1 else "prefill by a GEMV's"
        verdict = HOLDS if slower and min(slower.values()) > 2 else LOOSE if slower else "not measured"
        says = f"One kernel for both goes very badly: {phase}, times as long as by its own"
        yield Claim(says, "very badly", "", verdict, _cards(predicted), _cards(slower))
    (gemm,) = [r for r in [seen.simulated(DECODE, "gemm_cluster") or seen.simulated(DECODE, "gemm_wgmma")] if r] or [
        None
    ]
    if gemm and gemm.theory and gemm.simulated:
        waste = 1 - DECODE.flops / (gemm.theory["mma_flops"] or 1)
        counted = 1 - DECODE.flops / (gemm.simulated["mma_flops"] or 1)
        yield Claim(
            "A tensor-core GEMM on one token wastes nearly all that it issues",
            "nearly all",
            f"{waste:.1%}",
            HOLDS if waste > 0.9 else FAILS,
            f"{counted:.1%}",
        )
    shared = H100.shared_bytes_per_clock * H100.sms * H100.clock_hz / TERA
    yield Claim(
        "On-chip bandwidth, TB/s",
        "tens",
        f"{shared:.0f} of shared memory (H100)",
        HOLDS if 10 <= shared < 100 else FAILS,
    )


def _bytes_over_rate(seen: Seen) -> Iterator[Claim]:
    """A decode step takes the model's bytes over HBM's rate."""
    size = (THIRTEEN.parameters * 2) / GIGA
    yield Claim("13 billion parameters in 16 bits", "26 GB", f"{size:.1f} GB", judged(size, 26))
    floors = {m.name: size * GIGA / m.hbm_bandwidth * 1e3 for m in (H100, H200)}
    timed = {name: (r.us or 0.0) / 1e3 for name, r in _steps(seen, THIRTEEN).items()}
    predicted = {name: (r.predicted_us or 0.0) / 1e3 for name, r in _steps(seen, THIRTEEN).items()}
    beneath = [name for name, ms in timed.items() if ms < floors[name]]
    why = "no step that was measured is below its card's floor" if timed and not beneath else ""
    yield Claim(
        "Its weights alone take a token, ms",
        "7.8",
        _cards(floors),
        judged(floors["h100"], 7.8, why),
        _cards(predicted),
        _cards(timed),
    )
    yield Claim(
        "So many tokens a second at most", "128",
        _cards({n: 1e3 / ms for n, ms in floors.items()}), judged(1e3 / floors["h100"], 128),
        _cards({n: 1e3 / ms for n, ms in predicted.items()}), _cards({n: 1e3 / ms for n, ms in timed.items()}),
    )  # fmt: skip
    yield from _two_cards(seen)


def _steps(seen: Seen, model: Model) -> dict[str, Record]:
    """The newest whole step of a model on each card, launches overlapping."""
    same = [
        r
        for r in seen.past.where(on="gpu", problem=model.as_dict()).records
        if r.us and r.metrics.get("launches") == "overlapping" and not is_peer(r)
    ]
    found = {r.machine: r for r in same}
    seen.sources.update(r.source for r in found.values())
    return found


def _two_cards(seen: Seen) -> Iterator[Claim]:
    """Identical FLOPs, different bandwidth: layers that both cards were timed on."""
    said = H200.hbm_bandwidth / H100.hbm_bandwidth
    for problem, article in ((Linear(1, 13824, 5120), f"{said:.2f}"), (DECODE, f"{said:.2f}"), (PREFILL, "1")):
        found = seen.times(problem, peers=problem is PREFILL)
        if {"h100", "h200"} <= found.keys():
            ratio = (found["h100"].us or 0.0) / (found["h200"].us or 1.0)
            ours = [(found[n].predicted_us or 0.0) for n in ("h100", "h200")]
            theory = said if problem.m == 1 else 1.0
            what = "decode" if problem.m == 1 else "prefill"
            why = "a launch takes its part" if problem.m == 1 and ratio < theory / EXACT else ""
            yield Claim(
                f"Identical FLOPs: the H200's speed over the H100's in {what}, {problem.n:,} x {problem.k:,}",
                f"{article}, as {'bandwidth' if problem.m == 1 else 'FLOPs'}", figure(theory),
                judged(ratio, theory, why),
                figure(ours[0] / ours[1]) if all(ours) else "", figure(ratio),
            )  # fmt: skip


def _cache(seen: Seen) -> Iterator[Claim]:
    """The KV cache."""
    size = LAYERS * CACHE.bytes["kv"] / GIGA
    yield Claim(
        "Keys and values of 8,192 tokens, 32 layers of width 4,096", "4.3 GB", f"{size:.2f} GB", judged(size, 4.3)
    )
    counted = {
        name: r.counters["hbm_read_bytes"] / question_of(r).bytes["kv"]
        for r in seen.past.where(on="gpu", kernel="attention_split_kv").records
        if r.counters and (name := r.machine) and (r.problem or {}).get("q_len") == 1
    }
    if counted:
        seen.sources.update(
            r.source for r in seen.past.where(on="gpu", kernel="attention_split_kv").records if r.counters
        )
    yield Claim(
        "A step streams all of the cache, each byte read once",
        "1",
        "1",
        judged(next(iter(counted.values()), 1.0), 1.0),
        "",
        _cards(counted, " of its bytes"),
    )
    weights = 2 * LAYERS * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    equal = weights / (LAYERS * CACHE.bytes["kv"] / CACHE.kv_len)
    yield Claim(
        "The cache's read can exceed the weights', 32 layers of width 4,096",
        "at long context",
        f"from {equal:,.0f} tokens on; {size * GIGA / weights:.0%} of them at 8,192",
        HOLDS,
    )
    short, long = (replace(MODELS["llama-3-8b"], context=context) for context in (1024, 131072))
    more = long.flops / short.flops
    bytes_more = long.streamed_bytes / short.streamed_bytes
    steps = [_steps(seen, replace(MODELS["llama-3-8b"], context=context)) for context in (2048, 8192)]
    grown, _ = _faster(steps[1], steps[0])
    yield Claim(
        "A step's FLOPs barely move as the context grows, its bytes do (Llama-3-8B, 1,024 to 131,072 tokens)", "flat",
        f"FLOPs {more:.2f} times, bytes {bytes_more:.2f} times",
        judged(more, 1.0, "attention's own operations grow with the context"), "",
        _cards(grown, " times the time at 8,192 of 2,048"),
    )  # fmt: skip


def _narrow(seen: Seen) -> Iterator[Claim]:
    """Fewer bytes."""
    wide, narrow = seen.times(Linear(1, 8192, 8192)), seen.times(Linear(1, 8192, 8192, "fp8", scales="row"))
    measured, predicted = _faster(wide, narrow)
    verdict = HOLDS if measured and min(measured.values()) >= 1.8 else LOOSE if measured else "not measured"
    says = "Half the weight bytes, nearly half the time: 8,192 x 8,192 in fp8, m = 1"
    yield Claim(says, "nearly 2 times", "2", verdict, _cards(predicted), _cards(measured))


def _batching(seen: Seen) -> Iterator[Claim]:
    """Batching walks decode up the roofline."""
    layer = replace(DECODE, m=BATCH)
    intensity = layer.flops / layer.bytes["total"]
    yield Claim(f"FLOPs a byte with {BATCH} sequences", f"{BATCH}", figure(intensity), judged(intensity, BATCH))
    bends = {m.name: float(_bend(m)) for m in (H100, H200)}
    yield Claim(
        "Sequences from which a 4,096 x 4,096 layer is compute-bound", "300", _cards(bends),
        judged(bends["h100"], 300, "activations count too, and each chip has its ridge"), "",
        _cards(_measured_bends(seen)),
    )  # fmt: skip
    one, many = seen.times(DECODE), seen.times(layer)
    gained, predicted = ({name: BATCH * times for name, times in each.items()} for each in _faster(one, many))
    least = min(gained.values(), default=BATCH)
    yield Claim(
        f"One read of the weights serves {BATCH} tokens, where it served one",
        f"{BATCH} times",
        f"{BATCH}",
        judged(least, BATCH),
        _cards(predicted),
        _cards(gained),
    )
    from lab.inference.model_step import ModelStep  # loaded on first use: it loads the whole of a model's step

    most = {m.name: float(ModelStep(replace(THIRTEEN, context=4096), m).largest_batch) for m in (H100, H200)}
    yield Claim(
        "80 GB hold only so many caches: 13B with contexts of 4,096",
        f"fewer than {BATCH}",
        _cards(most),
        HOLDS if most["h100"] < BATCH else FAILS,
    )


def _bend(machine: Machine) -> int:
    """The least m at which the layer's compute bill is the larger one."""
    return next(
        m for m in range(1, 4096) if (one := replace(DECODE, m=m)).flops / one.bytes["total"] >= machine.ridge("bf16")
    )


def _measured_bends(seen: Seen) -> dict[str, float]:
    """Where the plateau of one token meets the slope of 1,024."""
    measured, _ = _faster(seen.times(DECODE), seen.times(replace(DECODE, m=1024)))
    return {name: 1024 * times for name, times in measured.items()}


def _ladder(seen: Seen) -> Iterator[Claim]:
    """From a naive kernel to nearly all of cuBLAS."""
    found = [
        r
        for r in seen.past.where(on="gpu", experiment="gemm_ladder").records
        if r.us and (r.problem or {}).get("weights") == "fp32"
    ]
    peers = [r.us or 0.0 for r in found if is_peer(r)]
    if not peers:
        return
    ours = {r.kernel: min(peers) / (r.us or 1.0) for r in found if not is_peer(r)}
    seen.sources.update(r.source for r in found)
    top = max(ours, key=lambda name: ours[name] or 0.0)
    naive = ours.get("gemm_naive")
    if naive:
        yield Claim(
            "A naive kernel's share of cuBLAS, fp32", "1.3%", "", judged(naive, 0.013), "", f"{naive:.1%} (H100)"
        )
    yield Claim(
        "The ladder's last rung, fp32", "93.7%", "", judged(ours[top], 0.937), "", f"{ours[top]:.1%} ({top}, H100)"
    )


def _serving(seen: Seen) -> Iterator[Claim]:
    """Two metrics."""
    model = MODELS["llama-3-8b"]
    for phase, says, article in (
        ("prefill", "Time to first token, 8,192 tokens over 2,048", 4.0),
        ("decode", "Inter-token latency, 8,192 tokens of context over 2,048", 1.0),
    ):
        short, long = (_steps(seen, replace(model, phase=phase, context=context)) for context in (2048, 8192))
        grown, predicted = _faster(long, short)
        flops = replace(model, phase=phase, context=8192).flops / replace(model, phase=phase, context=2048).flops
        moved = (
            replace(model, phase=phase, context=8192).streamed_bytes
            / replace(model, phase=phase, context=2048).streamed_bytes
        )
        theory = f"{flops:.2f} times the FLOPs" if phase == "prefill" else f"{moved:.2f} times the bytes"
        why = "attention's operations grow with the square" if phase == "prefill" else ""
        verdict = judged(max(grown.values()), article, why) if grown else "not measured"
        yield Claim(
            f"{says} (Llama-3-8B)",
            "with the prompt" if phase == "prefill" else "grows slowly",
            theory,
            verdict,
            _cards(predicted),
            _cards(grown),
        )


_CLAIMS: tuple[Callable[[Seen], Iterator[Claim]], ...] = (
    _shapes, _ridges, _no_kernel_serves_both, _bytes_over_rate, _cache, _ladder, _narrow, _batching, _serving,
)  # fmt: skip
