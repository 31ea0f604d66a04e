"""The names and texts of values of users, for errors, whatever their classes do."""


def type_name(value: object) -> str:
    """Return the name of a value's class, without calling its metaclass."""
    return str.__str__(_name_of(type(value)))


_name_of = vars(type)["__name__"].__get__


def shown(value: object) -> str:
    """Return the repr of a value, cut to 80 characters."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a hostile __repr__ must not hide the error that is being reported
        text = f"<{type_name(value)}>"
    return text if len(text) <= 80 else f"{text[:77]}..."
