"""What can go wrong in the lab: every error is one clear message, and `lab` exits 1 (or 2 for the caller's mistake)."""


class LabError(Exception):
    """Something failed. The message says what, and what to do next."""

    exit_code = 1


class BadRequestError(LabError):
    """The caller asked for something that can't be."""

    exit_code = 2


class CommandError(LabError):
    """A program of someone else ended badly; the message carries its last words."""
