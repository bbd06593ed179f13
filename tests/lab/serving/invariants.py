"""What holds of scheduler and pages at every moment, whatever was asked and whatever came back."""

from collections import Counter

from lab.serving.scheduler import Scheduler


def require_invariants(scheduler: Scheduler, holds: dict[int, set[int]]) -> None:
    """Raise AssertionError where one is violated; `holds` are the pages that each step in flight touches."""
    p, pool = scheduler.policy, scheduler.pool
    states = pool.states()
    every = [page for pages in states.values() for page in pages]
    assert sorted(every) == list(range(1, p.pages)), states  # each is in one state, the null page in none
    tables = Counter(page for s in scheduler.running for page in s.pages)
    assert all(pool.refs[page] == tables[page] for page in range(p.pages))
    assert pool.available == len(states["free"]) + len(states["cached"])
    assert pool.fenced == len(states["fenced"])
    assert all(pool.published(page) for page in states["cached"])
    assert not any(pool.published(page) for page in states["free"])
    touched = set().union(*holds.values()) if holds else set()
    assert not touched & set(states["free"] + states["cached"]), "a step in flight touches a page that can be taken"
    assert scheduler.table_pages == sum(len(s.pages) for s in scheduler.running)
    assert scheduler.table_tokens == sum(s.scheduled for s in scheduler.running)
    for s in scheduler.running:
        assert len(s.pages) == len(set(s.pages)) == -(-s.scheduled // p.page_tokens)
        assert list(scheduler.slots.tables[s.slot][: len(s.pages)]) == s.pages
        assert not scheduler.slots.tables[s.slot][len(s.pages) :].any(), "a table has columns of another sequence"
        assert s.computed <= s.scheduled <= s.length <= min(len(s.tokens) + len(scheduler.in_flight), s.limit - 1)
        assert all(page > 0 for page in s.pages)
    for s in scheduler.waiting:
        assert not s.pages
        assert s.slot < 0
    used = len({s.slot for s in scheduler.running})
    assert used == len(scheduler.running) <= p.max_rows
    if scheduler.host:
        away = Counter(page for s in scheduler.waiting for page in s.host)
        assert all(scheduler.host.refs[page] == away[page] for page in range(p.host_pages))


def require_plan(scheduler: Scheduler, plan: object, holds: dict[int, set[int]]) -> None:
    """Raise AssertionError where a plan that was just made is not a legal step."""
    p, pool = scheduler.policy, scheduler.pool
    assert plan.tokens == sum(plan.counts) <= p.max_tokens
    assert len(set(map(id, plan.sequences))) == plan.rows <= p.max_rows
    assert plan.counts[: plan.singles] == [1] * plan.singles
    assert all(count > 1 for count in plan.counts[plan.singles :])
    written: Counter[int] = Counter()
    for s, start, count, samples in zip(plan.sequences, plan.starts, plan.counts, plan.samples, strict=True):
        assert count >= 1
        first, last = start // p.page_tokens, (start + count - 1) // p.page_tokens
        written.update(s.pages[first : last + 1])
        assert start + count <= len(s.tokens) + 1, "more than one token is not known yet"
        assert samples == (start + count >= len(s.tokens) and start + count >= len(s.request.prompt))
    assert all(times == 1 for times in written.values()), "two rows write one page"
    for page in written:
        assert pool.refs[page] == 1, "a shared page is written"
        assert not pool.published(page), "a page that others may find is written"
    busy = set().union(*holds.values()) if holds else set()
    assert not busy & set(plan.new_pages), "a page was handed out while a step in flight touches it"
