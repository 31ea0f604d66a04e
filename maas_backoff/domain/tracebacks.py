"""The text of a traceback. The texts of frames are cached: tasks often fail in the same places."""

import traceback
from types import CodeType, TracebackType

FRAMES = 50
"""The innermost frames that a traceback shows."""

_KEPT = 1000
_texts: dict[tuple[CodeType, str, int], str] = {}


def text_of(error: BaseException) -> str:
    """Return the traceback as Python prints it. Raises what the error's `__str__` raises."""
    shown = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if shown is not None or hasattr(error, "exceptions"):  # Python prints more than this error's own frames
        return "".join(traceback.format_exception(error, limit=-FRAMES))
    return frames_of(error) + "".join(traceback.format_exception_only(error))


def frames_of(error: BaseException) -> str:
    """Return the frames of the traceback, without the error itself."""
    places: list[TracebackType] = []
    place = error.__traceback__
    while place is not None:
        places.append(place)
        place = place.tb_next
    head = "Traceback (most recent call last):\n" if places else ""
    return head + "".join(map(_text, places[-FRAMES:]))


def _text(place: TracebackType) -> str:
    code = place.tb_frame.f_code
    key = code, code.co_filename, place.tb_lasti  # code of two files may be equal
    text = _texts.get(key)
    if text is None:
        if len(_texts) >= _KEPT:
            _texts.clear()
        text = _texts[key] = "".join(traceback.format_tb(place, limit=1))
    return text
