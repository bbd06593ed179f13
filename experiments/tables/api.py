"""What Python offers, name by name, for the site to spell out from signatures and docstrings."""

from lab.record import Archive


def table(past: Archive) -> str:  # noqa: ARG001  (no record says what Python offers)
    """A directive of mkdocstrings for each public name, at the place where it is defined."""
    import experiments
    import lab

    found = [(name, getattr(package, name)) for package in (lab, experiments) for name in sorted(package.__all__)]
    return "\n\n".join(f"::: {what.__module__}.{name}" for name, what in found)
