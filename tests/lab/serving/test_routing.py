"""Routing by prefix: the same beginnings go to the same loop, unless it has far more to do than another."""

from hypothesis import given
from hypothesis import strategies as st

from lab.serving.routing import PrefixRouter

PAGE = 4
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=14)


@given(st.lists(PROMPTS, min_size=1, max_size=20), st.integers(1, 4), st.integers(0, 3))
def test_a_prompt_goes_where_its_prefix_is_within_the_slack(prompts: list[list[int]], loops: int, slack: int) -> None:
    router = PrefixRouter(loops, slack, PAGE)
    places: dict[tuple[int, ...], int] = {}  # the loop that was sent each prefix last
    for prompt in prompts:
        before = list(router.open)
        chosen = router.choose(prompt)
        prefixes = [tuple(prompt[:end]) for end in range(PAGE, len(prompt) + 1, PAGE)]
        known = next((places[prefix] for prefix in reversed(prefixes) if prefix in places), None)
        if known is not None and before[known] <= min(before) + slack:
            assert chosen == known
        else:
            assert before[chosen] == min(before)
        places |= dict.fromkeys(prefixes, chosen)
        assert sum(router.open) == sum(before) + 1
    for loop in range(loops):
        while router.open[loop]:
            router.done(loop)
    assert router.open == [0] * loops
