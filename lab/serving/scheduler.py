"""Who gets which tokens of the next step: continuous batching over pages, without a clock, chance or a device."""

from collections import deque
from itertools import repeat
from math import nan

from lab.serving.pages import PagePool
from lab.serving.policy import RECOMPUTE, SWAP, Costs, Policy
from lab.serving.request import ABORT, LENGTH, STOP, Request, Sequence
from lab.serving.step import CHUNKS, Copy, Note, Slots, StepPlan, StepResult
from sim.errors import InputError

LEARNING = 0.25  # of how many times as long as predicted the next steps take, by one step that takes less


class Scheduler:
    """Sequences and pages. `schedule` makes a plan, `commit` takes its result; plans may be made before results came.

    All its decisions follow from its policy and the order of its calls. `costs` is needed for `itl_us` and where the
    cheaper preemption is asked for; raises InputError where it lacks.
    """

    def __init__(self, policy: Policy, costs: Costs | None = None) -> None:
        if costs is None and policy.needs_costs:
            raise InputError("an ITL budget and the cheaper preemption need predicted costs")
        self.policy = policy
        self.pool = PagePool(policy.pages, policy.page_tokens)
        self.host = PagePool(policy.host_pages, policy.page_tokens) if policy.host_pages > 1 else None
        self.slots = Slots(policy.max_rows, policy.buckets.pages)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # the oldest first
        self.sequences: dict[int, Sequence] = {}
        self.in_flight: deque[StepPlan] = deque()
        self.table_pages = self.table_tokens = 0  # of all block tables together
        self.preemptions = self.hits = 0  # so far: sequences, and tokens found in the cache
        self._costs, self._heat = costs, costs.heat() if costs else None  # of the chip, as of the newest result
        self._forming = True  # the batch, where batches are static
        self._slower: dict[int, float] = {}  # how many times as long as predicted steps of so many tokens took
        self._steps = 0

    def add(self, request: Request) -> Sequence:
        """Queue a request; raises InputError where it can never be served, whatever else there is."""
        self.require(request)
        if request.id in self.sequences:
            raise InputError(f"request {request.id} is already under way")
        sequence = self.sequences[request.id] = Sequence(request)
        self.waiting.append(sequence)
        return sequence

    def require(self, request: Request) -> None:
        """Raise InputError where a request can never be served."""
        p, longest = self.policy, len(request.prompt) + request.max_tokens
        if not request.prompt or request.max_tokens < 1:
            raise InputError("a request has a prompt of at least one token, and asks for at least one")
        if longest > p.max_length:
            raise InputError(f"prompt and answer take up to {longest} tokens; the longest sequence is {p.max_length}")
        if self._pages_of(longest - 1) > p.pages - 1:  # the last token is never computed
            raise InputError(f"prompt and answer take up to {longest} tokens; {p.pages - 1} pages cannot hold them")

    def abort(self, id: int) -> Sequence | None:
        """End a request wherever it is; None where it has ended already."""
        sequence = self.sequences.get(id)
        if sequence:
            self._finish(sequence, ABORT)
        return sequence

    def schedule(self) -> StepPlan | None:
        """The next step; None where there is nothing to do before the results in flight are in.

        A step may have no rows, where all that it does is to move pages or to take them away.
        """
        plan = StepPlan(self._steps)
        preempted = self.preemptions
        self._decode(plan)
        budget = self._budget(plan)
        for sequence in tuple(self.running):
            if sequence.length - sequence.scheduled > 1 and sequence.slot >= 0 and self._open(plan, budget):
                self._chunk(plan, sequence, budget)
        self._forming = self._forming or not self.running
        if self.waiting and self.preemptions == preempted and (self.policy.continuous or self._forming):
            self._admit(plan, budget)
        if plan.tokens < budget:
            plan.predicted_us = 0.0
        if self.policy.itl_us and self._costs and plan.rows:
            first = plan.starts[plan.singles] if plan.chunks else 0
            plan.work = self._costs.step(
                plan.singles, plan.tokens, sum(plan.starts[: plan.singles]) + plan.singles, first
            )
        if not (plan.rows or plan.moves or self.preemptions > preempted):
            return None
        self._steps += 1
        self.in_flight.append(plan)
        return plan

    def commit(self, result: StepResult) -> list[Sequence]:
        """Take the result of the oldest step in flight; returns the sequences that have a token more.

        Raises ValueError for the result of another step.
        """
        plan = self.in_flight.popleft()
        if plan.step != result.step:
            raise ValueError(f"step {result.step} is committed; the oldest in flight is {plan.step}")
        if plan.predicted_us:
            slower, known = result.us / plan.predicted_us, self._slower.get(plan.tokens, 1.0)
            # A budget that was missed once is not to be missed again.
            self._slower[plan.tokens] = max(1.0, slower, known + LEARNING * (slower - known))
        if self._heat:
            self._heat.rest(result.idle_us)
            self._heat.ran(plan.work, result.us)
        page_tokens, caching, now = self.policy.page_tokens, self.policy.prefix_caching, result.ended_us
        emitted = []
        scores = result.log_probabilities or repeat(nan)
        rows = zip(plan.sequences, plan.starts, plan.counts, plan.samples, result.tokens, scores, strict=False)
        for sequence, start, count, sampled, token, score in rows:
            if sequence.reason:
                continue  # it ran one token too far, or was aborted
            if sequence.slot >= 0:
                computed = sequence.computed = start + count
                if caching and computed // page_tokens > sequence.published:
                    self._publish(sequence)
            if sampled:
                sequence.tokens.append(token)
                sequence.token_us.append(now)
                sequence.log_probability = score
                emitted.append(sequence)
                if token in sequence.request.ends:
                    self._finish(sequence, STOP)
                elif len(sequence.tokens) == sequence.limit:
                    self._finish(sequence, LENGTH)
        self.pool.complete(plan.step)
        if self.host:
            self.host.complete(plan.step)
        return emitted

    @property
    def busy(self) -> bool:
        """Whether some request has not ended, or some step has not come back."""
        return bool(self.sequences or self.in_flight)

    def _decode(self, plan: StepPlan) -> None:
        """Plan one token of each running sequence that is owed one."""
        step, page_tokens, promised = plan.step, self.policy.page_tokens, 0
        sequences, starts = plan.sequences, plan.starts
        for sequence in tuple(self.running):
            start = sequence.scheduled
            if sequence.length - start != 1 or sequence.slot < 0:
                continue
            if start == len(sequence.pages) * page_tokens:
                promised = self._grow(plan, sequence, promised)
                if sequence.slot < 0 or start == len(sequence.pages) * page_tokens:
                    continue
            sequences.append(sequence)
            starts.append(start)
            sequence.scheduled = start + 1
            sequence.last_step = step
            if start + 2 < sequence.limit:  # the last token of an answer is never computed
                sequence.length = start + 2
        rows = plan.rows
        plan.counts, plan.samples = [1] * rows, [True] * rows
        plan.tokens = plan.singles = rows
        self.table_tokens += rows

    def _grow(self, plan: StepPlan, sequence: Sequence, promised: int) -> int:
        """A page for one token more of a running sequence, where need be the youngest's; none where it has to wait.

        `promised` fenced pages are what others of this step wait for; returns how many are now.
        """
        while not self.pool.available:
            if self.pool.fenced > promised:  # to preempt more would free nothing sooner
                plan.notes.append(Note("stall", sequence.request.id, 1))
                return promised + 1
            youngest = self.running[-1]
            self._preempt(plan, youngest)
            if youngest is sequence:
                return promised
        self._extend(plan, sequence, 1)
        return promised

    def _chunk(self, plan: StepPlan, sequence: Sequence, budget: int) -> None:
        """Plan the next tokens of a prompt: what the budget and the pages allow."""
        page_tokens = self.policy.page_tokens
        while (room := (len(sequence.pages) + self.pool.available) * page_tokens - sequence.scheduled) <= 0:
            if plan.rows or self.in_flight:  # when those are over there may be pages
                plan.notes.append(Note("stall", sequence.request.id, 1))
                return
            youngest = self.running[-1]
            self._preempt(plan, youngest)
            if youngest is sequence:
                return
        count = min(sequence.length - sequence.scheduled, budget - plan.tokens, room)
        self._extend(plan, sequence, count)
        self._row(plan, sequence, count)

    def _admit(self, plan: StepPlan, budget: int) -> None:
        """Let waiting sequences in, in their order, but past those that do not fit as far as `bypass` allows."""
        skipped: list[Sequence] = []
        for sequence in tuple(self.waiting):
            if not self._open(plan, budget) or len(self.running) >= self.policy.max_rows:
                break
            parent = self.sequences.get(sequence.request.fork_of) if sequence.request.fork_of is not None else None
            if parent and parent.computed < len(parent.request.prompt):
                continue
            if self._seat(plan, sequence, parent):
                for passed in skipped:
                    passed.bypassed += 1
                self.waiting.remove(sequence)
                self.running.append(sequence)
                if sequence.length > sequence.scheduled:
                    self._chunk(plan, sequence, budget)
            else:
                skipped.append(sequence)
                if sequence.bypassed >= self.policy.bypass or len(skipped) > self.policy.bypass:
                    break

    def _seat(self, plan: StepPlan, sequence: Sequence, parent: Sequence | None) -> bool:
        """Give a waiting sequence a slot and the pages that it finds computed; False where it does not fit whole."""
        # Each that runs may need a page soon.
        pool, page_tokens, room = self.pool, self.policy.page_tokens, self.pool.available - len(self.running)
        if sequence.host:
            if room < self._pages_of(sequence.length):
                return False
            self._swap_in(plan, sequence)
            return True
        pages: list[int] = []
        chain = sequence.chain
        if self.policy.prefix_caching:
            pages, chain = pool.match(sequence.request.salt, sequence.tokens)
        last = sequence.length - 1  # is computed in any case, for what it samples
        partial = 0
        if parent and parent.pages and parent.computed >= last:
            if not self.policy.prefix_caching:
                pages = parent.pages[: last // page_tokens]
            partial = last % page_tokens if len(pages) == last // page_tokens else 0
        idle = sum(not pool.refs[page] for page in pages)  # available until they are shared
        if room - idle < self._pages_of(sequence.length) - len(pages):
            return False
        self.slots.seat(sequence)
        for page in pages:
            pool.share(page)
            self._append(sequence, page)
        sequence.published, sequence.chain = len(pages), chain
        found = len(pages) * page_tokens + partial
        if partial and parent:
            self._extend(plan, sequence, found)
            plan.copies.append(Copy(parent.pages[len(pages)], sequence.pages[-1]))
            parent.last_step = plan.step
        sequence.computed = sequence.scheduled = found
        self.table_tokens += found
        self.hits += found
        if not sequence.token_us:
            sequence.found = found
        plan.notes.append(Note("fork" if partial else "admit", sequence.request.id, found))
        return True

    def _open(self, plan: StepPlan, budget: int) -> bool:
        """Whether a chunk may join a step."""
        return plan.tokens < budget and plan.chunks < CHUNKS

    def _budget(self, plan: StepPlan) -> int:
        """Tokens that the step may have: all of the policy's, or the most whose step is predicted to be in time."""
        if not self.policy.itl_us or not self._costs or not self._heat:
            return self.policy.max_tokens
        owing = next((s for s in self.running if s.length - s.scheduled > 1), None)
        if owing is None and not self.waiting:
            return self.policy.max_tokens
        start, attended = owing.scheduled if owing else 0, sum(plan.starts) + plan.rows
        least = min(self.policy.max_tokens, plan.tokens + self.policy.page_tokens)
        edges = [edge for edge in self.policy.buckets.edges() if edge > least]
        heat = self._heat.copy()
        for ahead in self.in_flight:
            heat.run(ahead.work)
        for edge in [*edges, least]:
            plan.predicted_us = heat.copy().run(self._costs.step(plan.rows, edge, attended, start))
            if plan.predicted_us * self._slower.get(edge, 1.0) <= self.policy.itl_us:
                return edge
        return least

    def _row(self, plan: StepPlan, sequence: Sequence, count: int) -> None:
        start = sequence.scheduled
        end = sequence.scheduled = start + count
        at = plan.rows
        if count == 1:
            at, plan.singles = plan.singles, plan.singles + 1
        plan.sequences.insert(at, sequence)
        plan.starts.insert(at, start)
        plan.counts.insert(at, count)
        plan.samples.insert(at, end == sequence.length)
        if end == sequence.length < sequence.limit - 1:
            sequence.length += 1  # the last token of an answer is never computed
        plan.tokens += count
        sequence.last_step = plan.step
        self.table_tokens += count

    def _extend(self, plan: StepPlan, sequence: Sequence, count: int) -> None:
        """Pages for so many more tokens."""
        for _ in range(self._pages_of(sequence.scheduled + count) - len(sequence.pages)):
            page = self.pool.take()
            plan.new_pages.append(page)
            self._append(sequence, page)

    def _append(self, sequence: Sequence, page: int) -> None:
        self.slots.tables[sequence.slot, len(sequence.pages)] = page
        sequence.pages.append(page)
        self.table_pages += 1

    def _publish(self, sequence: Sequence) -> None:
        """Let others find the pages that are full and computed."""
        size = self.policy.page_tokens
        for i in range(sequence.published, min(sequence.computed // size, len(sequence.pages))):
            tokens = sequence.tokens[i * size : (i + 1) * size]
            sequence.chain = self.pool.publish(sequence.pages[i], sequence.chain, tokens)
            sequence.published = i + 1

    def _preempt(self, plan: StepPlan, sequence: Sequence) -> None:
        """Take the pages of the youngest running sequence, which is then the next to be admitted."""
        if self.host and self._swaps(sequence, self.host):
            sequence.last_step = plan.step
            sequence.host = [self.host.take() for _ in sequence.pages]
            plan.swapped_out += map(Copy, sequence.pages, sequence.host)
            plan.notes.append(Note("swap", sequence.request.id, len(sequence.pages)))
            self._unseat(sequence)
        else:
            plan.notes.append(Note("recompute", sequence.request.id, sequence.scheduled))
            self._unseat(sequence)
            sequence.scheduled = sequence.computed = sequence.published = 0
            sequence.chain = sequence.request.salt
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _swaps(self, sequence: Sequence, host: PagePool) -> bool:
        p, pages = self.policy, len(sequence.pages)
        if p.preemption == RECOMPUTE or host.available < pages:
            return False
        return p.preemption == SWAP or (
            self._costs is not None and self._costs.swap_us(pages) < self._costs.recompute_us(sequence.scheduled)
        )

    def _swap_in(self, plan: StepPlan, sequence: Sequence) -> None:
        assert self.host
        self.slots.seat(sequence)
        for source in sequence.host:
            page = self.pool.take()
            plan.new_pages.append(page)
            self._append(sequence, page)
            plan.swapped_in.append(Copy(source, page))
        plan.notes.append(Note("resume", sequence.request.id, len(sequence.host)))
        self.host.release(sequence.host, plan.step)
        sequence.host, sequence.last_step = [], plan.step
        self.table_tokens += sequence.scheduled

    def _unseat(self, sequence: Sequence) -> None:
        """Take a running sequence's slot and pages, which are fenced by the last step that may touch them."""
        self.table_pages -= len(sequence.pages)
        self.table_tokens -= sequence.scheduled
        self.pool.release(sequence.pages, sequence.last_step)
        sequence.pages = []
        self.slots.leave(sequence)
        self.running.remove(sequence)

    def _finish(self, sequence: Sequence, reason: str) -> None:
        if sequence.slot >= 0:
            self._unseat(sequence)
        else:
            self.waiting.remove(sequence)
        if sequence.host and self.host:
            self.host.release(sequence.host, sequence.last_step)
            sequence.host = []
        sequence.reason, self._forming = reason, False
        del self.sequences[sequence.request.id]

    def _pages_of(self, tokens: int) -> int:
        return -(-tokens // self.policy.page_tokens)
