"""The names of a queue's keys. All have one hash tag, because a queue must be in one slot of a Cluster."""

from functools import lru_cache


def ledger(uuid: str) -> str:
    """Return the key of a GPU's ledger. It has the UUID only: all queues share the ledger."""
    return f"maas:gpu:{{{uuid}}}"


class Keys:
    """The keys of the queue `biz_prefix`. docs/data-model.md says what each key has."""

    def __init__(self, biz_prefix: str) -> None:
        self.prefix: str = f"maas:{{{biz_prefix}}}:"
        self.changed_channel: str = f"{self.prefix}changed"
        self._all = lru_cache(maxsize=64)(self._each)

    def __call__(self, name: str) -> str:
        """Return the key of one of the queue's indexes or records, such as `ready`, `leases` or `meta`."""
        return self.prefix + name

    def all(self, names: tuple[str, ...], **own: str) -> tuple[str, ...]:
        """Return the keys of `names` in order; `own` has the keys of which a queue has several."""
        keys = self._all(names)
        return tuple(own.get(name, key) for name, key in zip(names, keys, strict=True)) if own else keys

    def _each(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(self, names))

    def task(self, task_id: str) -> str:
        """Return the key of a task. Scripts build the same key from the prefix and the id."""
        return f"{self.prefix}t:{task_id}"

    def stream(self, task_id: str) -> str:
        """Return the key of what a task has emitted. Scripts build this key and the next one, too."""
        return f"{self.prefix}parts:{task_id}"

    def log(self, task_id: str) -> str:
        """Return the key of the lines that a task has logged."""
        return f"{self.prefix}log:{task_id}"

    def request(self, worker: str, exchange: int) -> str:
        """Return the key of the last batch request of one exchange loop of a worker."""
        return f"{self.prefix}req:{worker}:{exchange}"

    def call(self, call_id: str) -> str:
        """Return the key of the answer to an operation."""
        return f"{self.prefix}call:{call_id}"

    def marker(self, worker: str) -> str:
        """Return the key of the marker that wakes one worker."""
        return f"{self.prefix}marker:{worker}"

    def info(self, worker: str) -> str:
        """Return the key of a worker's entry in the registry."""
        return f"{self.prefix}w:{worker}"

    def host(self, boot: str, namespace: str) -> str:
        """Return the key of the workers that run under one boot of a machine, in one namespace of process ids."""
        return f"{self.prefix}host:{boot}/{namespace}"

    def name(self, name: str) -> str:
        """Return the key of the worker that has a `worker_name`."""
        return f"{self.prefix}name:{name}"

    def quiet(self, worker: str) -> str:
        """Return the key that tells a worker to claim nothing."""
        return f"{self.prefix}quiet:{worker}"

    def of_kind(self, kind: str, name: str) -> str:
        """Return the name, for `__call__`, of an index or marker that each kind has, such as `ready` or `marker`."""
        return f"k:{kind}:{name}" if kind else name

    def ready_for_gpu(self, demand: str) -> str:
        """Return the name, for `__call__`, of the index of the ready tasks with this demand on a GPU."""
        return f"gpu:{demand}"

    def control(self, worker: str) -> str:
        """Return the key of the cancel requests to a worker."""
        return f"{self.prefix}ctl:{worker}"
