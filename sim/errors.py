"""Errors that a user can cause or meet; each carries the exit code of the `lab` command."""


class LabError(Exception):
    """A failure with one clear sentence for the user."""

    exit_code = 70


class InputError(LabError):
    """The request is wrong: the message says what is wrong and what is legal."""

    exit_code = 2


class ScheduleError(InputError):
    """The schedule is illegal, alone or for this problem and machine; the message shows both sides."""


class KernelError(LabError):
    """A kernel's own files are wrong: the message names file and line, and keeps the compiler's lines as they are."""

    exit_code = 2


class NoDeviceError(LabError):
    """A GPU was asked for and there is none that can be used."""

    exit_code = 3


class EnvironmentFailure(LabError):
    """The surroundings failed: a deadline, the compiler, a download, a folder, a lost device."""

    exit_code = 4
