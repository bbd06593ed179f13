"""A program that waits on a worker, for the test that interrupts it."""

import sys

from lab.gpu import worker
from tests.lab.gpu import chores

if __name__ == "__main__":
    for item in worker.stream(chores.sleep_with_child, sys.argv[1], 300):
        print(item, flush=True)
