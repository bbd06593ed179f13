"""A server in a process of its own, on a free port of this computer."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx
import openai

READY = re.compile(r"is served at (http://\S+),")


class Server(NamedTuple):
    """Where it listens, and its process."""

    url: str
    process: subprocess.Popen

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def now(self) -> dict:
        return httpx.get(f"{self.url}/now", timeout=30).json()


@contextmanager
def serving(*words: str, stops: bool = True) -> Iterator[Server]:
    """A running `lab serve`; it ends by Ctrl-C, as its user ends it, with nothing left behind."""
    command = [sys.executable, "-m", "experiments", "serve", *words, "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    late = threading.Timer(120, process.kill)
    late.start()
    try:
        assert process.stdout
        found = READY.search(process.stdout.readline())
        assert found, process.stderr and process.stderr.read()
        yield Server(found[1], process)
        if stops:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) in (0, 130)
    finally:
        late.cancel()
        process.kill()
        process.communicate()
