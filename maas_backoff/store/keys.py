"""The names of a queue's keys. All carry one hash tag, so that a queue lives in one slot of a cluster."""

from functools import lru_cache


def ledger(uuid: str) -> str:
    """Return the key of what is promised of a GPU: one for all queues, by its UUID alone."""
    return f"maas:gpu:{{{uuid}}}"


class Keys:
    """The keys of the queue `biz_prefix`. What each holds is said in lua/, where it is written."""

    def __init__(self, biz_prefix: str) -> None:
        self.prefix: str = f"maas:{{{biz_prefix}}}:"
        self.changed_channel: str = f"{self.prefix}changed"
        self._all = lru_cache(maxsize=64)(self._each)

    def __call__(self, name: str) -> str:
        """Return the key of one of the queue's indexes or records, such as `ready`, `leases` or `meta`."""
        return self.prefix + name

    def all(self, names: tuple[str, ...], **own: str) -> tuple[str, ...]:
        """Return the keys of `names` in order; `own` gives those that are not one per queue."""
        keys = self._all(names)
        return tuple(own.get(name, key) for name, key in zip(names, keys, strict=True)) if own else keys

    def _each(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(self, names))

    def task(self, task_id: str) -> str:
        """Return the key of a task. Scripts build it themselves, from the prefix and the id."""
        return f"{self.prefix}t:{task_id}"

    def request(self, worker: str, exchange: int) -> str:
        """Return the key of the last batch request that one exchange loop of a worker has sent."""
        return f"{self.prefix}req:{worker}:{exchange}"

    def call(self, call_id: str) -> str:
        """Return the key of what a call by hand was answered."""
        return f"{self.prefix}call:{call_id}"

    def marker(self, worker: str) -> str:
        """Return the key of a wake-up that is for one worker."""
        return f"{self.prefix}marker:{worker}"

    def info(self, worker: str) -> str:
        """Return the key of what a worker says of itself."""
        return f"{self.prefix}w:{worker}"

    def ready_for_gpu(self, demand: str) -> str:
        """Return the name, for `__call__`, of the index of the ready tasks that need this of a GPU."""
        return f"gpu:{demand}"

    def control(self, worker: str) -> str:
        """Return the key of the cancel requests to a worker."""
        return f"{self.prefix}ctl:{worker}"
