"""The width of texts on a terminal, where Chinese characters take two columns."""


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: Chinese characters take two."""
    if text.isascii():
        return len(text)
    from unicodedata import east_asian_width  # a command that shows English only does not need it

    return sum(2 if east_asian_width(char) in "FW" else 1 for char in text)


def padded(text: str, width: int) -> str:
    """Return a text with spaces behind it, for a column of this width."""
    return text + " " * (width - columns(text))


def cut(text: str, width: int) -> str:
    """Return a text, with "…" at its end if it has to be cut to this width."""
    if columns(text) <= width:
        return text
    shown = text[: max(0, width - 1)]
    while columns(shown) > max(0, width - 1):
        shown = shown[:-1]
    return f"{shown}…"
