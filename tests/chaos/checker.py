"""Whether a history keeps the promises. Pure: events and final states go in, violations come out."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import attrs
from chaos.history import Event
from chaos.setting import BACKOFF, LEASE, MAX_RETRY, POISON_MAX_LOST

TOLERANCE = 0.02
"""Seconds. One machine has one clock, but the server's time is in whole milliseconds."""

NOTED_LATE = 1.0
"""Seconds after which the driver has noted a death. A neighbour may have the dead worker's tasks back before that."""

KEPT_ATTEMPTS = 10
ACCEPTED = {"ok", "already", "cancelled"}
FINISHED = {"completed", "failed", "cancelled"}


@attrs.frozen
class Final:
    """The end of a task, by the server."""

    status: str
    token: int
    attempt: int
    retry: int = 0
    lost: int = 0
    error: str | None = None
    result: object = None
    failed_attempts: tuple[int, ...] = ()
    created: float = 0
    expired: bool = False
    function: str = ""


@attrs.frozen
class Violation:
    """A promise that was not kept, by its name."""

    promise: str
    task_id: str
    text: str

    def __str__(self) -> str:
        return f"{self.promise}: task {self.task_id!r}: {self.text}"


@attrs.define
class Story:
    """All that is known of one task."""

    task_id: str
    final: Final | None = None
    invoke: Event | None = None
    acked: bool = False
    cancel: Event | None = None
    starts: list[Event] = attrs.field(factory=list)
    ends: dict[int, Event] = attrs.field(factory=dict)
    settles: list[Event] = attrs.field(factory=list)
    sent: list[Event] = attrs.field(factory=list)
    """Settlements on their way, where they are noted: a worker may die before it hears of their end."""

    @property
    def unanswered(self) -> list[Event]:
        answered = {settle["token"] for settle in self.settles}
        return [one for one in self.sent if one["token"] not in answered]

    @property
    def repeated(self) -> list[Event]:
        """Settlements that were answered `lost`, although the task came back without a loss: a lost reply said `ok`."""
        found: list[Event] = []
        for settle in self.settles:
            if settle["answer"] == "lost":
                before, after = self._runs_around(settle["token"])
                if before is not None and after is not None and after["lost"] == before["lost"]:
                    found.append(settle)
        return found

    def _runs_around(self, token: int) -> tuple[Event | None, Event | None]:
        """Return the run under a token, and the one that follows."""
        places = [n for n, start in enumerate(self.starts) if start["token"] == token]
        at = places[0] if places else len(self.starts)
        return (*self.starts[at : at + 2], None, None)[:2]

    @property
    def accepted(self) -> list[Event]:
        return [settle for settle in self.settles if settle["answer"] in ACCEPTED]

    @property
    def kind(self) -> str:
        return "" if self.invoke is None else self.invoke["kind"]

    @property
    def may_wait(self) -> bool:
        return self.invoke is not None and bool(self.invoke.get("tenant") or self.invoke.get("limits"))

    def add(self, event: Event) -> None:
        match event["event"]:
            case "invoke":
                self.invoke = event
            case "acked":
                self.acked = True
            case "cancel":
                self.cancel = event
            case "start":
                self.starts.append(event)
            case "end":
                self.ends[event["token"]] = event
            case "settle":
                self.settles.append(event)
            case "sent":
                self.sent.append(event)


def stories(events: Iterable[Event], finals: Mapping[str, Final]) -> dict[str, Story]:
    """Return each task's story."""
    found: dict[str, Story] = {}
    for event in events:
        if "id" in event:
            found.setdefault(event["id"], Story(event["id"])).add(event)
    for task_id, final in finals.items():
        found.setdefault(task_id, Story(task_id)).final = final
    for story in found.values():
        story.starts.sort(key=lambda start: int(start["token"]))
    return found


def check(events: list[Event], finals: Mapping[str, Final]) -> list[Violation]:
    """Return every violation of a promise about a single task."""
    stood_still = {event["worker"] for event in events if event["event"] == "stop"}
    found: list[Violation] = []
    for story in stories(events, finals).values():
        for rule in RULES:
            found += [Violation(rule.__name__, story.task_id, text) for text in rule(story)]
        if story.cancel is not None:
            found += [Violation("cancelled", story.task_id, text) for text in cancelled(story, stood_still)]
    return found


def lost(story: Story) -> Iterator[str]:
    """Each acknowledged task is there; others may be. Each task that is there was asked for."""
    if story.acked and story.final is None:
        yield "acknowledged, and gone"
    if story.invoke is None:
        yield "nobody created it"
    if story.starts and story.final is None:
        yield "it ran, and is gone"


def stuck(story: Story) -> Iterator[str]:
    """After the drain every task is finished."""
    if story.final is not None and story.final.status not in FINISHED:
        yield f"still {story.final.status}"


def settled_once(story: Story) -> Iterator[str]:
    """One end per task, one accepted outcome per token, one run per token."""
    for what, tokens in (("settled", story.accepted), ("started", story.starts)):
        seen = [event["token"] for event in tokens]
        yield from (f"token {token} {what} twice" for token in sorted({t for t in seen if seen.count(t) > 1}))
    ends = [settle for settle in story.accepted if settle["status"] in FINISHED]
    if len(ends) > 1:
        yield f"ended {len(ends)} times, under tokens {[end['token'] for end in ends]}"


def refused(story: Story) -> Iterator[str]:
    """No worker is told that its outcome was refused, and it stands: a repeated settlement has its first answer."""
    final = story.final
    if final is None or final.status != "completed":
        return
    accepted = {settle["token"] for settle in story.accepted}
    for settle in story.settles:
        is_it = settle["status"] == "completed" and settle["token"] == final.token
        if is_it and settle["answer"] not in ACCEPTED and final.token not in accepted:
            yield f"completed under token {final.token}, and its worker was told {settle['answer']}"


def highest_token(story: Story) -> Iterator[str]:
    """The outcome that stands is that of the highest token, and nothing runs after it."""
    final = story.final
    if final is None:
        return
    for settle in story.accepted:
        if settle["status"] in FINISHED and settle["token"] != final.token:
            yield f"{settle['status']} under token {settle['token']}, the highest is {final.token}"
        elif settle["token"] > final.token:
            yield f"token {settle['token']} was accepted, the highest is {final.token}"
        elif settle["status"] in FINISHED and settle["status"] != final.status:
            yield f"{settle['status']} was accepted, it is {final.status}"
    if story.starts and story.starts[-1]["token"] > final.token:
        yield f"started under token {story.starts[-1]['token']}, the highest is {final.token}"
    if final.status == "completed" and final.result != {"token": final.token}:
        yield f"completed under token {final.token} with another run's result {final.result}"


def overlap(story: Story) -> Iterator[str]:
    """A second run begins beside a first one only when that one's lease had ended, and was counted as lost."""
    for n, first in enumerate(story.starts):
        end = story.ends.get(first["token"])
        for second in story.starts[n + 1 :]:
            if end is not None and second["time"] < end["time"] and second["lost"] <= first["lost"]:
                yield f"tokens {first['token']} and {second['token']} ran at the same time, and none was lost"


def early(story: Story) -> Iterator[str]:
    """Nothing starts before its delay, or the backoff of the attempt before, is over."""
    if story.invoke is not None:
        due = story.invoke["time"] + story.invoke["delay"]
        for start in story.starts:
            if start["time"] < due - TOLERANCE:
                yield f"attempt {start['attempt']} started {due - start['time']:.3f} s before its delay was over"
    for before, after in zip(story.starts, story.starts[1:], strict=False):
        if after["retry"] <= before["retry"]:
            continue
        ended = story.ends.get(before["token"], before)  # a child that was killed has noted no end
        due = ended["time"] + BACKOFF * 2.0 ** before["retry"]
        if after["time"] < due - TOLERANCE:
            yield f"attempt {after['attempt']} started {due - after['time']:.3f} s before its backoff was over"


def overdue(story: Story) -> Iterator[str]:
    """Nothing starts after its deadline, and a task is expired only if it could not go on in time."""
    final = story.final
    if final is None or story.invoke is None or not final.created:
        return
    due = final.created + story.invoke["delay"]
    start_by, end_by = (due + (story.invoke.get(name) or float("inf")) for name in ("start_within", "complete_within"))
    last = min(start_by, end_by)
    for start in story.starts:
        # The last release ignores deadlines.
        if start["time"] > last + TOLERANCE and start.get("knows_deadlines", True):
            yield f"attempt {start['attempt']} started {start['time'] - last:.3f} s after its deadline"
    if final.expired and last == float("inf"):
        yield "expired without a deadline"


def foreign(story: Story) -> Iterator[str]:
    """A task is run by the function of its kind, in a worker that has this function."""
    if story.invoke is None:
        return
    function = story.invoke.get("function", "")
    for start in story.starts:
        if function not in (there := start.get("functions", [""])):
            yield f"attempt {start['attempt']} of function {function!r} ran in a worker that has {sorted(there)}"
        elif start.get("function", "") != function:
            yield f"attempt {start['attempt']} of function {function!r} was run by {start.get('function', '')!r}"
    if story.final is not None and story.final.function != function:
        yield f"created for function {function!r}, and read as one for {story.final.function!r}"


def bounded(story: Story) -> Iterator[str]:
    """No more runs than retries, losses and hand-backs allow; no more failed attempts kept than there were."""
    final = story.final
    if final is None:
        return
    if final.retry > MAX_RETRY:
        yield f"{final.retry} retries of {MAX_RETRY}"
    ended = [*story.accepted, *story.unanswered, *story.repeated]
    released = sum(settle["status"] == "pending" and settle["error"] is None for settle in ended)
    if len(story.starts) > 1 + final.retry + final.lost + released:
        runs = len(story.starts)
        yield f"{runs} runs with {final.retry} retries, {final.lost} losses and {released} hand-backs"
    if any(start["attempt"] > final.attempt for start in story.starts):
        yield f"attempt {story.starts[-1]['attempt']} of {final.attempt}"
    if len({start["attempt"] for start in story.starts}) < len(story.starts):
        yield "two runs have the same number"
    retried = sum(settle["status"] == "pending" and settle["error"] is not None for settle in story.accepted)
    if retried > final.retry:
        yield f"{retried} retries were accepted, {final.retry} counted"
    numbers = final.failed_attempts
    failed = final.retry + final.lost + (final.status == "failed" and final.error != "lease_lost")
    if final.status != "cancelled" and len(numbers) != min(KEPT_ATTEMPTS, failed):
        yield f"{len(numbers)} failed attempts are kept, of {failed}"
    if len(set(numbers)) < len(numbers):
        yield f"an attempt has failed twice: {numbers}"


def right_end(story: Story) -> Iterator[str]:
    """Each kind of task ends as it must: poison as lost or crashed, the innocent as completed."""
    final = story.final
    if final is None or final.status not in FINISHED:
        return
    how = (final.status, final.error, final.retry, final.lost)
    match story.kind:
        case "poison":
            as_lost = final.error == "lease_lost" and final.lost >= POISON_MAX_LOST
            as_crashed = final.error == "crashed" and final.retry == MAX_RETRY
            right = final.status == "failed" and (as_lost or as_crashed)
        case "doomed":
            right = final.status == "failed" and final.error == "ConnectionError" and final.retry == MAX_RETRY
        case "flaky":
            right = final.status == "completed" and story.invoke is not None and final.retry == story.invoke["fails"]
        case "limited" if final.expired:
            right = final.status == "cancelled"
        case "regretted" | "interrupted":
            right = final.status == "cancelled" or (final.status == "completed" and final.retry == 0)
        case _:
            right = final.status == "completed" and final.retry == 0
    if not right:
        yield f"a {story.kind} task ended as {how}"


RULES: tuple[Callable[[Story], Iterator[str]], ...] = (
    lost,
    stuck,
    settled_once,
    refused,
    highest_token,
    overlap,
    early,
    overdue,
    foreign,
    bounded,
    right_end,
)


def cancelled(story: Story, stood_still: set[int]) -> Iterator[str]:
    """A task whose cancellation was acknowledged is cancelled, and does not start any more."""
    assert story.cancel is not None
    if story.cancel["answer"] is not True:
        return
    if story.final is not None and story.final.status != "cancelled":
        yield f"cancelled, and {story.final.status}"
    for start in story.starts:
        # A process may be stopped between its last look at the lease and the handler.
        if start["time"] > story.cancel["time"] and start["worker"] not in stood_still:
            yield f"attempt {start['attempt']} started after it was cancelled"


@attrs.frozen
class Mixture:
    """How the code of the last release and today's shared the work of a mixed run."""

    old_creations: int
    creations: int
    old_attempts: int
    attempts: int
    in_both: int
    """Tasks with attempts by both codes."""

    def __str__(self) -> str:
        return (
            f"the last release made {self.old_creations} of {self.creations} tasks "
            f"and began {self.old_attempts} of {self.attempts} attempts; {self.in_both} tasks had attempts by both"
        )

    def check(self) -> list[Violation]:
        """Return a violation if one of the two codes did nothing: the run was not mixed."""
        is_mixed = 0 < self.old_creations < self.creations and 0 < self.old_attempts < self.attempts
        return [] if is_mixed and self.in_both else [Violation("mixed", "", str(self))]


def mixture(events: Iterable[Event], old: str) -> Mixture:
    """Return the part of the code in the folder `old`: each process notes from where it has imported the package."""
    creations = [event["code"] for event in events if event["event"] == "invoke"]
    starts = [(event["id"], event["code"] == old) for event in events if event["event"] == "start"]
    by_old = {task_id for task_id, is_old in starts if is_old}
    by_new = {task_id for task_id, is_old in starts if not is_old}
    old_attempts = sum(is_old for _, is_old in starts)
    return Mixture(creations.count(old), len(creations), old_attempts, len(starts), len(by_old & by_new))


def check_counts(finals: Mapping[str, Final], counts: Mapping[str, int], what: str) -> list[Violation]:
    """Counters say what the tasks say; a state that is not named has none."""
    mine: dict[str, int] = defaultdict(int)
    for final in finals.values():
        mine[final.status] += 1
    wrong = [state for state in {*mine, *counts} if mine[state] != counts.get(state, 0)]
    return [Violation("counts", "", f"{what}: {counts.get(state, 0)} {state}, not {mine[state]}") for state in wrong]


def returns(events: list[Event], finals: Mapping[str, Final], *, quiet: bool = False) -> list[float]:
    """Return the times, in leases, from the death of a worker to the next run of each task that it had.

    `quiet`: of those only which nothing came between that keeps all workers from the server.
    Tasks that have a tenant or limits are left out: they may wait for a turn, a limit, or the end of a pause.
    """
    found = [story for story in stories(events, finals).values() if not story.may_wait]
    outages = [event["time"] for event in events if event["event"] == "outage"]
    times: list[float] = []
    for death in (event for event in events if event["event"] == "died"):
        for story in found:
            settled = {settle["token"] for settle in story.accepted}
            for run, following in zip(story.starts, story.starts[1:], strict=False):
                theirs = run["worker"] == death["worker"] and run["token"] not in settled
                disturbed = quiet and any(death["time"] - 2 * LEASE <= at <= following["time"] for at in outages)
                lost_then = following["lost"] > run["lost"] and run["time"] <= death["time"] <= following["time"]
                if theirs and lost_then and not disturbed:
                    times.append((following["time"] - death["time"]) / LEASE)
    return times


def needless_losses(events: list[Event], finals: Mapping[str, Final]) -> int:
    """Count the runs that lost their lease although their worker neither died nor stood still meanwhile."""
    hurt = defaultdict(list)
    for event in events:
        if event["event"] in {"died", "stop"}:
            hurt[event["worker"]].append(event["time"])
    count = 0
    for story in stories(events, finals).values():
        for run, following in zip(story.starts, story.starts[1:], strict=False):
            until = following["time"] + NOTED_LATE
            between = [when for when in hurt[run["worker"]] if run["time"] <= when <= until]
            # With an attempt in between that never started, nothing is known of who lost that one.
            count += following["lost"] > run["lost"] and following["attempt"] == run["attempt"] + 1 and not between
    return count
