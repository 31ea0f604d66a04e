"""Exceptions of a handler: signals in groups, errors of a GPU in causes, and classes that do as they please."""

import concurrent.futures
import dataclasses
import pickle
import traceback
from collections.abc import Callable

import attrs
import pytest

from maas_backoff import Discard, RateLimited, Retry, Snooze, TaskError
from maas_backoff.domain import handler_outcome as h
from maas_backoff.domain import outcome as o
from maas_backoff.domain import raised
from maas_backoff.domain.result import ResultEntity
from maas_backoff.domain.shorten import TEXT_LIMIT


class OutOfMemoryError(RuntimeError):
    """As PyTorch names it."""


class AcceleratorError(RuntimeError):
    """As PyTorch names it."""


def group(*errors: BaseException) -> BaseExceptionGroup:
    return BaseExceptionGroup("unhandled errors", errors)


RETRY = o.Failed(TaskError("Retry", "busy"), retry_after=9, requested=True)
DISCARDED = o.Failed(TaskError("discarded", "bad prompt"), permanent=True)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (group(Discard("bad prompt")), DISCARDED),
        (group(Snooze(5)), o.Snoozed(5)),
        (group(Retry(9, "busy")), RETRY),
        (group(group(group(Retry(9, "busy")))), RETRY),
        (group(Snooze(5), group(Snooze(7), Snooze(6))), o.Snoozed(7)),
        (group(RateLimited(20, limit="a"), Snooze(60)), o.Snoozed(60, (("a", 20),))),
        (group(RateLimited(20), group(RateLimited(9, limit="a"))), o.Snoozed(20, (("", 20), ("a", 9)))),
        (group(RateLimited(20), Retry(9, "busy")), RETRY),
        (group(RateLimited(20), Discard("bad prompt")), DISCARDED),
        (group(Retry(), Retry(9, "busy"), Retry(2, "other")), RETRY),
        (group(Snooze(60), Retry(9, "busy")), RETRY),
        (group(Retry(2), Snooze(5), ValueError(), Discard("bad prompt")), DISCARDED),
    ],
)
def test_signals_in_groups_do_what_they_say(error: BaseException, expected: o.Outcome) -> None:
    """The strongest of several signals counts: Discard, Retry, Snooze; among equal ones, the longest delay."""
    assert h.outcome_of_error(error) == expected


def test_a_retry_beside_an_error_tells_of_both() -> None:
    outcome = h.outcome_of_error(group(Retry(9, "busy"), ValueError("no model")))
    assert isinstance(outcome, o.Failed)
    assert (outcome.error, outcome.retry_after) == (RETRY.error, 9)
    assert "ValueError: no model" in outcome.traceback


def test_a_snooze_hides_no_error() -> None:
    """It uses no retry: a fault of the handler would go on for a thousand snoozes."""
    outcome = h.outcome_of_error(group(Snooze(5), RateLimited(5), ValueError("no model")))
    assert isinstance(outcome, o.Failed)
    assert outcome.raised and outcome.error.type == "ExceptionGroup"
    assert "ValueError: no model" in outcome.error.message


def test_the_message_of_a_group_tells_of_its_members() -> None:
    outcome = h.outcome_of_error(group(*(ValueError(n) for n in range(9))))
    assert isinstance(outcome, o.Failed)
    expected = "; ".join(f"ValueError: {n}" for n in range(5))
    assert outcome.error.message == f"unhandled errors (9 sub-exceptions): {expected}; 4 more"


def because(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def while_handling(error: BaseException, context: BaseException, *, hidden: bool = False) -> BaseException:
    error.__context__, error.__suppress_context__ = context, hidden
    return error


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (group(OutOfMemoryError()), "out_of_memory"),
        (group(ValueError(), group(RuntimeError("CUDA out of memory. Tried to allocate"))), "out_of_memory"),
        (group(AcceleratorError(), OutOfMemoryError()), "out_of_memory"),
        (group(ValueError(), AcceleratorError()), "gpu"),
        (because(RuntimeError("the batch failed"), OutOfMemoryError()), "out_of_memory"),
        (because(RuntimeError("the batch failed"), group(ValueError(), AcceleratorError())), "gpu"),
        (while_handling(KeyError(), because(ValueError(), OutOfMemoryError())), "out_of_memory"),
        (while_handling(KeyError(), OutOfMemoryError(), hidden=True), ""),
        (because(Retry(), OutOfMemoryError()), "out_of_memory"),
        (group(because(Retry(), OutOfMemoryError())), "out_of_memory"),
        (while_handling(Retry(), OutOfMemoryError(), hidden=True), "out_of_memory"),
        (group(Retry(), OutOfMemoryError()), "out_of_memory"),
        (group(Snooze(1), OutOfMemoryError()), "out_of_memory"),
        (group(Retry(), ValueError()), ""),
        (ValueError(), ""),
    ],
)
def test_errors_of_a_gpu_are_found_in_groups_and_causes(error: BaseException, fault: str) -> None:
    outcome = h.outcome_of_error(error)
    assert isinstance(outcome, o.Failed)
    assert outcome.fault == fault
    assert outcome.exception is (None if fault else error), "its traceback would keep the GPU's memory"


def test_circles_of_causes_and_endless_groups_come_to_an_end() -> None:
    one, other = ValueError(1), ValueError(2)
    one.__cause__, other.__context__ = other, one
    assert list(raised.related(one)) == [one, other]
    deep: BaseException = OutOfMemoryError()
    for _ in range(10 * raised.MOST):
        deep = group(deep)
    assert len(list(raised.related(deep))) == raised.MOST
    assert len(raised.members(group(*[ValueError()] * 5 * raised.MOST))) == raised.MOST


def in_a_pool(kind: str) -> None:
    match kind:
        case "retry":
            raise Retry(9, "busy", params={"a": 1})
        case "snooze":
            raise Snooze(5)
        case "discard":
            raise Discard("bad prompt")
        case "memory":
            raise Retry(9, "busy") from OutOfMemoryError("CUDA out of memory")
        case "hidden":
            raise ValueError("no model") from AcceleratorError("CUDA error: an illegal access")
        case _:
            raise ValueError("told: # CUDA out of memory is only in this line of code")


def test_signals_that_come_from_a_process_pool_do_what_they_say(pool: concurrent.futures.Executor) -> None:
    """They come back pickled, with a text in place of their traceback and causes."""
    told: dict[str, o.HandlerOutcome] = {}
    for kind in ("retry", "snooze", "discard", "memory", "hidden"):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - any
            pool.submit(in_a_pool, kind).result(30)
        assert "in_a_pool" in str(caught.value.__cause__)
        told[kind] = h.outcome_of_error(caught.value)
    assert told["retry"] == attrs.evolve(RETRY, params='{"a":1}')
    assert told["snooze"] == o.Snoozed(5)
    assert told["discard"] == DISCARDED
    assert told["memory"] == attrs.evolve(RETRY, fault="out_of_memory")
    assert isinstance(told["hidden"], o.Failed) and told["hidden"].fault == "gpu"


def test_a_line_of_code_in_a_remote_traceback_tells_nothing() -> None:
    try:
        raise ValueError("x")  # CUDA out of memory
    except ValueError as error:
        text = traceback.format_exc()
        error.__cause__ = concurrent.futures.process._RemoteTraceback(f'\n"""\n{text}"""')  # type: ignore[attr-defined] # typeshed does not list it
        assert "CUDA out of memory" in text
        outcome = h.outcome_of_error(error)
    assert isinstance(outcome, o.Failed) and outcome.fault == ""


@dataclasses.dataclass
class Busy(Retry):
    seconds: float = 5


@dataclasses.dataclass
class Later(Snooze):
    after: float = 7


class Openai(RateLimited):
    after = 7
    limit = "openai"

    def __init__(self) -> None:
        """Nothing is set."""


class Never(Snooze):
    def __init__(self) -> None:
        """Nothing is set."""


class BadPrompt(Discard):
    def __init__(self, field: str) -> None:
        self.field = field


class Soon(Retry):
    after = "soon"  # type: ignore[assignment] - wrong on purpose
    __init__ = Never.__init__  # type: ignore[assignment] - as above


class Unlimited(RateLimited):
    after = 7
    limit = "two words"
    __init__ = Never.__init__  # type: ignore[assignment] - as above


class Odd(Retry):
    params = ("no", "dict")  # type: ignore[assignment] - wrong on purpose
    __init__ = Never.__init__  # type: ignore[assignment] - as above


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Busy(3), o.Failed(TaskError("Retry", "retry requested"), requested=True)),
        (Later(), o.Snoozed(7)),
        (Openai(), o.Snoozed(7, (("openai", 7),))),
        (BadPrompt("prompt"), o.Failed(TaskError("discarded", "discarded by its handler"), permanent=True)),
        (Odd(), o.Failed(TaskError("not_serializable", "params: expected a dict, got tuple"), permanent=True)),
    ],
)
def test_a_subclass_that_sets_nothing_has_the_defaults_of_its_class(error: BaseException, expected: o.Outcome) -> None:
    assert h.outcome_of_error(error) == expected
    assert h.outcome_of_error(pickle.loads(pickle.dumps(error))) == expected


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Never(), "after: expected seconds from 0 to ten years, or a timedelta, got None"),
        (Soon(), "after: expected seconds from 0 to ten years, or a timedelta, got 'soon'"),
        (Unlimited(), "limit: expected 1 to 100 of A-Z a-z 0-9 _ . : @ / + -, got 'two words'"),
        (group(Snooze(5), Unlimited()), "limit: expected 1 to 100 of A-Z a-z 0-9 _ . : @ / + -, got 'two words'"),
    ],
)
def test_a_signal_that_says_nothing_sensible_is_a_failure(error: BaseException, message: str) -> None:
    outcome = h.outcome_of_error(error)
    assert isinstance(outcome, o.Failed) and outcome.raised and not outcome.permanent
    (*_, wrong) = raised.members(error)
    assert (outcome.error.type, outcome.error.message) == (type(wrong).__name__, message)


class EvilText(str):
    __slots__ = ()

    def encode(self, *_: object, **__: object) -> bytes:
        raise SystemExit("encode")

    def __getitem__(self, _: object) -> str:
        raise SystemExit("slice")

    def __format__(self, _: str) -> str:
        raise SystemExit("format")


class EvilMeta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override] - that is the point
        raise SystemExit("name")


def raising(*_: object, **__: object) -> object:
    raise SystemExit("attribute")


EVIL = property(raising)


def evil_class(base: type[BaseException], **members: object) -> BaseException:
    return EvilMeta("Evil", (base,), {"__init__": lambda self: None, **members})()


@pytest.mark.parametrize("base", [ValueError, Retry, Snooze, RateLimited, Discard, SystemExit])
@pytest.mark.parametrize(
    "members",
    [
        {"__str__": raising},
        {"__repr__": raising, "__str__": lambda self: EvilText("x")},
        {"__str__": lambda self: 5},
        {"__class__": EVIL},
        {"__class__": property(lambda self: Retry)},
        {"__class__": property(lambda self: str)},
        {
            "__traceback__": EVIL,
            "__cause__": EVIL,
            "__context__": EVIL,
            "__suppress_context__": EVIL,
            "__notes__": EVIL,
        },
        {"__bool__": raising, "__len__": raising, "__eq__": raising, "__hash__": None},
        {"__getattribute__": raising},
        {"__getattr__": raising},
        {"exceptions": EVIL, "args": EVIL},
        {"after": EVIL, "reason": EVIL, "params": EVIL},
        {"after": 7, "limit": EVIL},
        {"after": 7, "limit": EvilText("x")},
        {"after": 7, "limit": EvilText("two words")},
        {"after": float("nan"), "reason": EvilText("x"), "params": {"a": EvilText("\ud800")}},
    ],
    ids=",".join,
)
def test_nothing_that_an_exception_does_escapes(base: type[BaseException], members: dict[str, object]) -> None:
    def fail(error: BaseException) -> None:
        raise error

    for wrap in (lambda error: error, lambda error: group(error, ValueError("x")), lambda e: because(ValueError(), e)):
        try:
            error = wrap(evil_class(base, **members))
        except SystemExit:
            continue  # Python itself asks for its class, and makes no group of it
        try:
            fail(error)
        except BaseException as caught:
            outcome = h.outcome_of_error(caught)
        assert isinstance(outcome, o.Failed | o.Snoozed)
        if isinstance(outcome, o.Failed):
            assert type(outcome.error.type) is type(outcome.error.message) is str
            assert len(f"{outcome.error}".encode()) <= TEXT_LIMIT + h.LONGEST_NAME
        else:
            assert all(type(name) is str for name, _ in outcome.closes)
        o.to_dict(outcome)


class EvilGroup(BaseExceptionGroup[BaseException]):
    exceptions = EVIL  # type: ignore[assignment] - that is the point


def test_a_group_that_hides_its_members_is_read_all_the_same() -> None:
    assert h.outcome_of_error(EvilGroup("x", [Discard("bad prompt")])) == DISCARDED


class EvilDict(dict[str, object]):
    def items(self) -> object:  # type: ignore[override] - that is the point
        raise SystemExit("items")


class EvilResult(ResultEntity):
    def __getattribute__(self, name: str) -> object:
        raise SystemExit(name)


@pytest.mark.parametrize("make", [EvilDict, EvilResult, lambda: evil_class(ValueError, __class__=EVIL)])
def test_a_value_is_an_outcome_whatever_it_does(make: Callable[[], object]) -> None:
    assert isinstance(h.outcome_of_value(make(), 100), o.Failed)


def test_an_exception_for_the_log_is_without_our_frames() -> None:
    """They refer to the attempt, which would be a circle for the garbage collector."""
    namespace = {"__name__": "maas_backoff.worker.executors.inline"}
    exec("def run(handler):\n    handler()", namespace)

    def handler() -> None:
        raise ValueError("x")

    try:
        namespace["run"](handler)  # type: ignore[operator] - made by exec
    except ValueError as error:
        outcome = h.outcome_of_error(error.with_traceback(error.__traceback__.tb_next))  # type: ignore[union-attr] - it has one
    assert isinstance(outcome, o.Failed) and outcome.exception is not None
    assert "in run" in outcome.traceback
    names = [frame.name for frame in traceback.extract_tb(outcome.exception.__traceback__)]
    assert names == ["handler"]
