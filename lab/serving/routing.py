"""Which of several loops a request goes to: the one that has most of its prefix, unless another has far less to do."""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from lab.inference.step_input import PAGE

MOST_KNOWN = 2**16  # pages whose place is remembered


class PrefixRouter:
    """Remembers which loop was sent which pages of prompts. `slack` is how many requests more the one with the prefix
    may have under way than the one with the fewest."""

    def __init__(self, loops: int, slack: int = 8, page_tokens: int = PAGE) -> None:
        self.open = [0] * loops  # requests under way
        self._slack, self._page_tokens = slack, page_tokens
        self._known: OrderedDict[bytes, int] = OrderedDict()

    def choose(self, prompt: Sequence[int]) -> int:
        """The loop for a prompt, which has one more under way from now on."""
        pages = self._digests(prompt)
        least = min(range(len(self.open)), key=self.open.__getitem__)
        found = next((self._known[page] for page in reversed(pages) if page in self._known), least)
        chosen = found if self.open[found] <= self.open[least] + self._slack else least
        for page in pages:
            self._known[page] = chosen
            self._known.move_to_end(page)
        while len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        self.open[chosen] += 1
        return chosen

    def done(self, loop: int) -> None:
        """A request of that loop has ended."""
        self.open[loop] -= 1

    def _digests(self, prompt: Sequence[int]) -> list[bytes]:
        """Of the prompt up to the end of each full page."""
        chain, found = blake2b(digest_size=16), []
        for first in range(0, len(prompt) - self._page_tokens + 1, self._page_tokens):
            chain.update(repr(tuple(prompt[first : first + self._page_tokens])).encode())
            found.append(chain.digest())
        return found
