"""The tasks of a history that emit words, and readers who compare what they have with what must be there."""

import asyncio
import itertools
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import attrs
from chaos.checker import Final, Violation

from maas_backoff import StorageError, TaskEntity
from maas_backoff.store.streams import PARTS, Place, Streams

if TYPE_CHECKING:
    from simulation.world import World

WORDS = 6

How = Literal["", "keeps", "anew"]


def how_of(task_id: str) -> How:
    """Return whether a task emits: it keeps the parts of earlier attempts, or begins anew."""
    how: list[How] = ["", "keeps", "anew"]
    return random.Random(f"stream {task_id}").choice(how)


def words_of(task_id: str) -> list[str]:
    return [f"{n}:{task_id} " for n in range(WORDS)]


def text_of(task_id: str, token: int) -> str:
    """Return the text that a completed task must have; `token` is that of its last attempt."""
    begin = f"{token} " if how_of(task_id) == "anew" else ""
    return begin + "".join(words_of(task_id))


async def say(task: TaskEntity, seconds: float) -> None:
    """Emit the words of a task in this time, from where the kept ones end."""
    words, done = words_of(task.task_id), 0
    if how_of(task.task_id) == "keeps":
        task.keep_emitted()
        said = len(task.emitted_text())
        done = sum(end <= said for end in itertools.accumulate(map(len, words)))
    else:
        task.emit(f"{task.token} ")
    for word in words[done:]:
        await asyncio.sleep(seconds / WORDS)
        task.emit(word)


@attrs.define
class Readers:
    """The readers of all streams of a history."""

    world: "World"
    streams: Streams
    _reading: list["asyncio.Task[None]"] = attrs.field(factory=list["asyncio.Task[None]"])
    _texts: dict[str, str] = attrs.field(factory=dict[str, str])
    """The parts that each reader has."""
    violations: list[Violation] = attrs.field(factory=list[Violation])

    def follow(self, task_id: str) -> None:
        """Read the stream of a task until its end, at intervals."""
        if how_of(task_id):
            self._reading.append(self.world.loop.spawn(None, self._follow(task_id)))

    async def _follow(self, task_id: str) -> None:
        dice, place, attempt = random.Random(f"reader {task_id}"), Place(PARTS, task_id, ""), 0
        self._texts[task_id] = ""
        while True:
            try:
                (read,) = await self.streams.read_first([place])
            except StorageError:
                await asyncio.sleep(1)
                continue
            if read is None:  # lost with the newest data of the server
                del self._texts[task_id]
                return
            for part in read.parts():
                if part.attempt < attempt:
                    text = f"a part of attempt {part.attempt} came after one of attempt {attempt}"
                    self.violations.append(Violation("stale", task_id, text))
                attempt = part.attempt
                self._texts[task_id] = "" if part.restarted else self._texts[task_id] + part.data
            place = read.next(place)
            if read.has_ended:
                return
            if not read.more:
                await asyncio.sleep(dice.uniform(0, 8))

    def _may_have_expired(self, task_id: str) -> bool:
        """Whether a task may have been over for its reader, and ran after the server's clock had been set back."""
        kinds = {event["id"]: event["kind"] for event in self.world.events if event["event"] == "invoke"}
        return self.world.jumps and kinds.get(task_id) == "limited"

    async def judge(self, finals: Mapping[str, Final], *, loses: bool) -> list[Violation]:
        """Compare the texts of all readers, of late readers, and those that must be there."""
        if self._reading:
            await asyncio.wait(self._reading, timeout=60)
        found = [] if loses else self.violations  # attempts that a server has lost are made again
        for task_id, text in self._texts.items():
            final = finals.get(task_id)
            if final is None:
                continue
            late = "".join(part.data for part in await self.streams.all_parts(task_id))
            if text != late and not (self._may_have_expired(task_id) and late.startswith(text)):
                found.append(Violation("text", task_id, f"a reader has {text!r}, a late one {late!r}"))
            wanted = text_of(task_id, final.token)
            if final.status == "completed" and late != wanted:
                found.append(Violation("text", task_id, f"the stream has {late!r}, not {wanted!r}"))
        return found
