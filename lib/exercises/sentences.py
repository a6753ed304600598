"""The answers that every check gives."""

PASSED = "Passed."
NOT_WRITTEN = "Not written yet."


def raised(error: Exception, where: str) -> str:
    """That a reader's function raises an error.

    where: what it was given.
    """
    return f"It raises {type(error).__name__} for {where}: {error}"


def kind(value: object) -> str:
    """The type of a value, with its article."""
    return f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"
