"""A seeded network before a real server: it delays, loses and cuts, and it is the server's clock.

Commands reach the server one after the other, in the order of their arrival. The order of two connections changes with
their delays; a reply that is lost has the same call sent again by its sender.
"""

import asyncio
import random
import socket
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import hiredis
from redis._parsers.base import BaseParser
from redis.exceptions import NoPermissionError, ResponseError

from maas_backoff.errors import StorageUnavailableError
from maas_backoff.store.link import translated
from maas_backoff.store.scripts import REAP
from simulation.loop import Node, SimulatedLoop

CLOCK = "0000000000000"
"""The time in a message, until it arrives at the server."""

START_MS = 1_800_000_000_000

TAKE = """
for n = 1, #KEYS do
  local taken = redis.call('ZPOPMIN', KEYS[n])
  if #taken > 0 then return { KEYS[n], taken[1], taken[2] } end
end
return false
"""


@attrs.define(eq=False)
class Sleeper:
    """A client that sleeps on the server until there is a marker."""

    link: "SimulatedLink"
    keys: list[bytes]
    rest: bytes
    answers: int
    reply: "asyncio.Future[list[Any]]"


class RealServer:
    """The connection to the real server: a message is handled at once, in no virtual time."""

    def __init__(self, path: str) -> None:
        """Connect to a server's Unix socket: many calls there take half the time of those by TCP."""
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._reader = hiredis.Reader(replyError=BaseParser.parse_error)
        self._received = bytearray(65_536)
        self._take = self.one("SCRIPT", "LOAD", TAKE)

    def one(self, *command: Any) -> Any:
        """Send one command; return its answer. Raises its error."""
        (answer,) = self.ask(hiredis.pack_command(command), 1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ask(self, packed: bytes, answers: int) -> list[Any]:
        """Send commands; return their answers, errors among them."""
        self._socket.sendall(packed)
        found: list[Any] = []
        while len(found) < answers:
            one = self._reader.gets()
            if one is False:
                self._reader.feed(self._received, 0, self._socket.recv_into(self._received))
            else:
                found.append(one)
        return found

    def take(self, keys: Sequence[bytes]) -> Any:
        """Take the first marker of these keys: its key, its name, its score. None: there is none."""
        if len(keys) == 1:
            taken = self.one("ZPOPMIN", keys[0])
            return [keys[0], *taken] if taken else None
        return self.one("EVALSHA", self._take, len(keys), *keys)

    def forget_scripts(self) -> None:
        self.one("SCRIPT", "FLUSH")
        self._take = self.one("SCRIPT", "LOAD", TAKE)

    def snapshot(self) -> dict[bytes, bytes]:
        return {key: self.one("DUMP", key) for key in self.one("KEYS", "*")}

    def restore(self, snapshot: dict[bytes, bytes]) -> None:
        self.one("FLUSHALL")
        for key, value in snapshot.items():
            self.one("RESTORE", key, 0, value)

    def close(self) -> None:
        self._socket.close()


class Network:
    """All connections of all nodes to the server."""

    def __init__(self, loop: SimulatedLoop, server: RealServer, choice: random.Random, noise: float) -> None:
        """Lose or reset a share `noise` of all messages."""
        self.loop = loop
        self.server = server
        self._choice = choice
        self.noise = noise
        self.slowness = 1.0
        self.cut: set[Node] = set()
        self.still_until_look: dict[Node, float] = {}
        """Nodes that go on when a reaper looks, after this moment: a renewal then meets the reaper's settlement."""
        self.down = False
        self.denied = False
        self.offset_ms = 0.0
        """How far the server's clock is off."""
        self._sleepers: list[Sleeper] = []
        self._marked = False
        """Whether there is a marker for a sleeper."""
        self._in_flight: dict[asyncio.Future[list[Any]], None] = {}
        self.when_changed: Callable[[], None] | None = None
        """Called when the server has handled a message."""

    @property
    def now_ms(self) -> float:
        return START_MS + self.loop.now * 1000 + self.offset_ms

    def send(self, link: "SimulatedLink", packed: bytes, answers: int) -> "asyncio.Future[list[Any]]":
        """Send a message. The future gets the answers, or an error, or nothing ever."""
        reply: asyncio.Future[list[Any]] = self.loop.create_future()
        self._in_flight[reply] = None
        fate = self._choice.random()
        if self.down or fate < self.noise / 4:
            self._later(0.5, self._reset, reply)
        elif fate >= self.noise / 2 or fate < self.noise / 4:
            heard = fate >= self.noise or fate < self.noise / 2
            self._later(1, self._arrive, self.loop.node, link, packed, answers, reply, heard)
        return reply

    def _later(self, factor: float, callback: Any, *args: Any) -> None:
        seconds = self._choice.expovariate(1 / 0.002) * self.slowness * factor
        if self._choice.random() < 0.01:
            seconds += self._choice.uniform(0, 1.5)
        loop = self.loop
        before, loop.node = loop.node, None
        loop.call_at(loop.now + (0.0002 + seconds), callback, *args)
        loop.node = before

    def _arrive(
        self,
        node: Node | None,
        link: "SimulatedLink",
        packed: bytes,
        answers: int,
        reply: "asyncio.Future[list[Any]]",
        heard: bool,
    ) -> None:
        if node in self.cut:
            return
        if self.down:
            self._reset(reply)
            return
        if packed[:18].partition(b"\r\n")[2].startswith(b"$8\r\nBZPOPMIN"):
            self._sleep(link, packed, answers, reply)
            return
        found = self._refused(answers) if self.denied else self._ask(packed, answers)
        if heard:
            self._later(1, self._answer, node, reply, found)
        self._wake()
        if self.when_changed is not None:
            self.when_changed()
        if self.still_until_look and REAP.digest.encode() in packed:
            self._go_on()

    def _ask(self, packed: bytes, answers: int) -> list[Any]:
        """Have the server handle a message; look in the same call whether sleepers have a marker now."""
        packed = packed.replace(CLOCK.encode(), f"{self.now_ms:.0f}".encode())
        self._sleepers = [sleeper for sleeper in self._sleepers if not sleeper.reply.done()]
        keys = {key: None for sleeper in self._sleepers for key in sleeper.keys}
        if not keys:
            return self.server.ask(packed, answers)
        *found, markers = self.server.ask(packed + hiredis.pack_command(("EXISTS", *keys)), answers + 1)
        self._marked = markers > 0
        return found

    def _go_on(self) -> None:
        for node, since in list(self.still_until_look.items()):
            if self.loop.now > since:
                del self.still_until_look[node]
                self.loop.go_on(node)

    def _refused(self, answers: int) -> list[Any]:
        return [NoPermissionError("this user has no permissions to run the command")] * answers

    def _sleep(self, link: "SimulatedLink", packed: bytes, answers: int, reply: "asyncio.Future[list[Any]]") -> None:
        head, _, rest = packed.partition(b"\r\n")
        words: list[bytes] = []
        for _ in range(int(head[1:])):
            size, _, rest = rest.partition(b"\r\n")
            words.append(rest[: int(size[1:])])
            rest = rest[int(size[1:]) + 2 :]
        sleeper = Sleeper(link, words[1:-1], rest, answers - 1, reply)
        taken = self.server.take(sleeper.keys)
        if taken is not None:
            self._rise(sleeper, taken)
            self._wake()
            return
        self._sleepers.append(sleeper)
        before, self.loop.node = self.loop.node, None
        self.loop.call_later(float(words[-1]), self._sleep_over, sleeper)
        self.loop.node = before

    def _sleep_over(self, sleeper: Sleeper) -> None:
        if sleeper in self._sleepers:
            self._sleepers.remove(sleeper)
            self._rise(sleeper, None)
            self._wake()

    def _wake(self) -> None:
        """Let markers end sleeps, of those that sleep longest first."""
        while self._marked:
            self._marked = False
            for sleeper in list(self._sleepers):
                taken = self.server.take(sleeper.keys)
                if taken is not None:
                    self._sleepers.remove(sleeper)
                    self._rise(sleeper, taken)

    def _rise(self, sleeper: Sleeper, taken: Any) -> None:
        """Answer a sleeper; the server then runs what has come behind its sleep."""
        found = [taken]
        if sleeper.rest:
            found += self._ask(sleeper.rest, sleeper.answers)
        self._later(1, self._answer, None, sleeper.reply, found)

    def _answer(self, node: Node | None, reply: "asyncio.Future[list[Any]]", found: list[Any]) -> None:
        self._in_flight.pop(reply, None)
        if node in self.cut or reply.done():
            return
        refused = next((one for one in found if isinstance(one, ResponseError)), None)
        if refused is None:
            reply.set_result(found)
        else:
            error = translated(refused)
            error.__cause__ = refused
            reply.set_exception(error)

    def _reset(self, reply: "asyncio.Future[list[Any]]") -> None:
        if not reply.done():
            reply.set_exception(StorageUnavailableError("the connection was reset"))

    def drop(self, link: "SimulatedLink") -> None:
        """Close a connection: the server forgets its sleeper."""
        self._sleepers = [one for one in self._sleepers if one.link is not link]

    def reset_all(self) -> None:
        """Reset all connections, as a restart of the server does."""
        self._sleepers.clear()
        replies, self._in_flight = self._in_flight, {}
        for reply in replies:
            self._reset(reply)


class SimulatedLink:
    """Stands in for store/link.py: Link."""

    network: Network

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._replies: dict[asyncio.Future[list[Any]], None] = {}

    async def ask(self, packed: bytes, answers: int = 1) -> list[Any]:
        reply = self.network.send(self, packed, answers)
        self._replies[reply] = None
        try:
            async with asyncio.timeout(self._timeout):
                return await reply
        except TimeoutError:
            self.drop()
            raise StorageUnavailableError("no answer in time") from TimeoutError()
        except BaseException:
            self.drop()
            raise
        finally:
            self._replies.pop(reply, None)

    def drop(self) -> None:
        self.network.drop(self)
        for reply in list(self._replies):
            self.network._reset(reply)

    async def aclose(self) -> None:
        self.drop()
