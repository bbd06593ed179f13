"""The norm by which models of time join what a launch waits for."""


def joined(exponent: float, *each: float) -> float:
    """Little more than the longest, all in one unit: near a tie, each delays the other."""
    return float(sum(one**exponent for one in each) ** (1 / exponent))
