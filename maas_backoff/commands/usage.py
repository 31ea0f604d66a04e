"""The error of wrong usage."""


class UsageError(Exception):
    """Raised for an error that the caller of a command can correct; the message is one sentence."""
