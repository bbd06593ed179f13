"""Quantities as a person reads them: three significant digits and a decimal prefix; JSON has the exact numbers."""

_PREFIXES = ("", "k", "M", "G", "T", "P")
_TIMES = ("ns", "us", "ms", "s")


def quantity(value: float, unit: str) -> str:
    """A size or a count, such as 33.6 MB."""
    return _scaled(value, [f"{prefix}{unit}" for prefix in _PREFIXES])


def duration(us: float | None) -> str:
    """Microseconds, such as 4.56 ms; "-" for None."""
    return "-" if us is None else _scaled(us * 1e3, _TIMES)


def _scaled(value: float, units: tuple[str, ...] | list[str]) -> str:
    """In the first unit in which it rounds to less than 1,000, each a thousand of the one before it."""
    *smaller, largest = units
    for unit in smaller:
        if abs(value) < 999.5:
            return f"{_three(value)} {unit}".rstrip()
        value /= 1000
    return f"{_three(value) if abs(value) < 999.5 else f'{value:,.0f}'} {largest}"


def _three(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if value else "0"
