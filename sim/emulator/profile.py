"""What each instruction of a kernel moved and how often it was executed, where that is asked for."""

from sim.emulator import tables as t
from sim.emulator.alu import count_bits
from sim.linked_jit import jit

# What is told apart by instruction, as columns of PROFILE behind the number of executions and of lanes.
EXECUTIONS, LANES = range(2)
FIRST = 2
COUNTED = (t.LOAD_REQUESTS, t.STORE_REQUESTS, t.LOAD_SECTORS, t.STORE_SECTORS, t.SHARED_REQUESTS, t.SHARED_WAVEFRONTS,
           t.SHARED_IDEAL, t.L2_TO_SM, t.SM_TO_L2)  # fmt: skip
COLUMNS = FIRST + len(COUNTED)


@jit
def note(h, pc, mask):
    """An instruction begins: what was counted since the last one began is that one's."""
    cfg, stat, profile = t.i64_1(h, t.CFG), t.i64_1(h, t.STAT), t.i64_2(h, t.PROFILE)
    last, seen = cfg[t.PROFILED], profile.shape[0] - 1  # the last row holds the counters as they were then
    for i, counter in enumerate(COUNTED):
        profile[last, FIRST + i] += stat[counter] - profile[seen, FIRST + i]
        profile[seen, FIRST + i] = stat[counter]
    profile[pc, EXECUTIONS] += 1
    profile[pc, LANES] += count_bits(mask)
    cfg[t.PROFILED] = pc
