"""A copy of all keys of a queue. The server says which keys have changed: a look reads those, and not all of them."""

import socket
from typing import Any

import hiredis
from lanes import Lanes

from maas_backoff.store.keys import Keys

_READ = """
local found = {}
for n = 1, #KEYS do
  local kind = redis.call('TYPE', KEYS[n]).ok
  local entries = {}
  if kind == 'hash' then
    entries = redis.call('HGETALL', KEYS[n])
  elseif kind == 'zset' then
    entries = redis.call('ZRANGE', KEYS[n], 0, -1, 'WITHSCORES')
  end
  found[n] = { kind, entries }
end
return found
"""


class Mirror:
    """The hashes and sorted sets of one queue, as they are on the server at each `read`."""

    def __init__(self, path: str, queue: str) -> None:
        """Connect to the Unix socket of a server whose queue is empty."""
        self._prefix = Keys(queue).prefix.encode()
        self._lanes = Lanes({}, {})
        self._changed: set[bytes] = set()
        self._reader = hiredis.Reader()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._ask("HELLO", 3)
        self._ask("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self._prefix)

    def read(self) -> Lanes:
        """Return the keys as they are now, until the next call."""
        self._ask("PING")  # its answer comes after the notes of all changes before
        if self._changed:
            changed, self._changed = self._changed, set()
            for key, (kind, entries) in zip(changed, self._ask("EVAL", _READ, len(changed), *changed), strict=True):
                self._put(key.removeprefix(self._prefix).decode(), kind, entries)
        return self._lanes

    def _put(self, name: str, kind: bytes, entries: list[bytes]) -> None:
        self._lanes.hashes.pop(name, None)
        self._lanes.zsets.pop(name, None)
        pairs = zip(entries[::2], entries[1::2], strict=True)
        if kind == b"hash":
            self._lanes.hashes[name] = {k.decode(): v.decode("utf-8", "replace") for k, v in pairs}
        elif kind == b"zset":
            self._lanes.zsets[name] = {member.decode(): float(score) for member, score in pairs}

    def _ask(self, *command: object) -> Any:
        """Return the answer to a command, and note the changes that come before it. Raises its error."""
        self._socket.sendall(hiredis.pack_command(command))
        while True:
            answer = self._reader.gets()
            if answer is False:
                self._reader.feed(self._socket.recv(65_536))
            elif isinstance(answer, hiredis.PushNotification):
                self._note(answer[1])
            elif isinstance(answer, Exception):
                raise answer
            else:
                return answer

    def _note(self, changed: list[bytes] | None) -> None:
        if changed is None:  # all keys are gone
            self._lanes = Lanes({}, {})
        else:
            self._changed.update(changed)

    def close(self) -> None:
        self._socket.close()
