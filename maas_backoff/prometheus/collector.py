"""A snapshot as metric families of prometheus_client, without I/O."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

import attrs
from prometheus_client import Metric

from maas_backoff.common.version import __version__
from maas_backoff.domain.gpu import GpuStatus
from maas_backoff.domain.histogram import BatchSizes, Durations, MemorySizes
from maas_backoff.domain.history import Activity
from maas_backoff.domain.shares import LimitStats, TenantStats
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.worker import Worker
from maas_backoff.prometheus.snapshot import Snapshot

Labels = Mapping[str, str]
Samples = Iterable[tuple[Labels, float]]

_GIB = 2**30
_EACH_OCTAVE = 4
"""The number of memory buckets that make one bucket of Prometheus: the upper ends of those double."""
MOST_SHARES = 50
"""The tenants, and the limits, that have metrics of their own: those with most waiting tasks."""
_OTHER = "other"
_SUFFIXES = {"counter": "_total", "histogram": "_bucket"}


@attrs.frozen(eq=False)  # a registry needs a hash
class Collector:
    """The metric families of one queue; only `up` if the server did not answer and there is no snapshot."""

    queue: str
    snapshot: Snapshot | None

    def collect(self) -> Iterator[Metric]:
        """Yield the families, for prometheus_client."""
        snapshot = self.snapshot
        yield self._one("gauge", "up", "Whether the server answered this scrape.", snapshot is not None)
        release = "1, with the release of the process that answers the scrape."
        yield self._family("gauge", "build_info", release, [({"version": __version__}, 1)])
        if snapshot is not None:
            yield from self._of_tasks(snapshot.stats)
            yield from self._of_tenants(snapshot.tenants, len(snapshot.stats.paused_tenants))
            yield from self._of_limits(snapshot.limits)
            yield from self._of_activity(snapshot.total)
            yield from self._of_workers(snapshot.workers)
            yield from self._of_gpus(snapshot.gpus)

    def _of_tasks(self, stats: QueueStats) -> Iterator[Metric]:
        states = {
            "due": stats.pending_count - stats.scheduled_count - stats.gpu_count,
            "waiting_for_gpu": stats.gpu_count,
            "scheduled": stats.scheduled_count,
            "processing": stats.processing_count,
            "completed": stats.completed_count,
            "failed": stats.failed_count,
            "cancelled": stats.cancelled_count,
        }
        text = "Tasks in the queue, each in one state; finished ones until their time to live ends."
        yield self._family("gauge", "tasks", text, (({"state": state}, number) for state, number in states.items()))
        unfit = "Tasks that wait for a GPU, and ask for more memory than any device of a live worker has."
        yield self._one("gauge", "unfit_tasks", unfit, stats.unfit_count)
        suspect = "Due tasks that lost their worker again; they come back in halves."
        yield self._one("gauge", "suspect_tasks", suspect, stats.suspect_count)
        created = "Tasks that were created."
        yield self._one("counter", "created_tasks", created, stats.created_count)
        oldest = "For how long the first due task has waited; 0 when none is due. Unfit tasks are left out."
        yield self._one("gauge", "oldest_pending_age_seconds", oldest, stats.oldest_pending_age)
        yield self._one("gauge", "paused", "Whether the queue is paused.", stats.paused)
        due = (({"kind": kind}, stats.due_of(kind)) for kind in stats.kinds)
        yield self._family("gauge", "kind_due_tasks", "Due tasks of each kind, at most 200 kinds.", due)
        paused = (({"kind": kind}, kind in stats.paused_kinds) for kind in stats.kinds)
        yield self._family("gauge", "kind_paused", "Whether the kind is paused.", paused)

    def _of_tenants(self, tenants: Sequence[TenantStats], paused: int) -> Iterator[Metric]:
        waiting = {one.name: one.waiting for one in tenants[:MOST_SHARES]}
        if len(tenants) > MOST_SHARES:
            # A tenant may have this name, too.
            waiting[_OTHER] = waiting.get(_OTHER, 0) + sum(one.waiting for one in tenants[MOST_SHARES:])
        text = (
            f"Waiting tasks of the {MOST_SHARES} tenants with most of them, delayed ones too; `{_OTHER}`: the others."
        )
        found = (({"tenant": name}, number) for name, number in waiting.items())
        yield self._family("gauge", "tenant_waiting_tasks", text, found)
        yield self._one("gauge", "tenants", "Tenants with waiting tasks.", sum(one.waiting > 0 for one in tenants))
        yield self._one("gauge", "paused_tenants", "Tenants that are paused, at most 1000.", paused)

    def _of_limits(self, limits: Sequence[LimitStats]) -> Iterator[Metric]:
        groups = dict[str, list[LimitStats]]()
        for one in limits:
            groups.setdefault(one.set_by or one.name, []).append(one)
        tasks = {name: sum(one.waiting_tasks for one in group) for name, group in groups.items()}
        names = sorted(groups, key=lambda name: (-tasks[name], name))[:MOST_SHARES]
        own = {name: one for name in names for one in groups[name] if one.name == name and not one.is_class}
        in_use = (({"limit": name}, one.in_use) for name, one in own.items())
        yield self._family("gauge", "limit_in_use", "Running tasks that name the limit.", in_use)
        most = (({"limit": name}, one.most) for name, one in own.items() if one.most is not None)
        yield self._family("gauge", "limit_most", "Tasks that may run at once by the limit.", most)
        shut = (({"limit": name}, sum(bool(one.shut) for one in groups[name])) for name in names)
        text = "1 if no task may start by the limit; of a class such as `user:*`, how many of its names are shut."
        yield self._family("gauge", "limit_shut", text, shut)
        lanes = (({"limit": name}, sum(one.waiting_lanes for one in groups[name])) for name in names)
        text = "Lanes that wait for the limit: sets of due tasks with the same tenant, kind and limits."
        yield self._family("gauge", "limit_waiting_lanes", text, lanes)
        waiting = (({"limit": name}, tasks[name]) for name in names)
        yield self._family("gauge", "limit_waiting_tasks", "Due tasks that wait for the limit.", waiting)

    def _of_activity(self, total: Activity) -> Iterator[Metric]:
        ends = {"completed": total.completed, "failed": total.failed, "cancelled": total.cancelled}
        finished = (({"state": state}, number) for state, number in ends.items())
        yield self._family("counter", "finished_tasks", "Ends of tasks.", finished)
        for name, number, text in (
            ("retries", total.retried, "Failed attempts whose task was retried."),
            ("lost_leases", total.lost, "Attempts whose worker was lost."),
            ("snoozes", total.snoozed, "Attempts whose handler asked to come back later."),
            ("out_of_memory", total.out_of_memory, "Attempts that ran out of GPU memory and came back."),
            ("gpu_faults", total.gpu_fault, "Attempts that a broken GPU failed, and that came back."),
            ("expired_tasks", total.expired, "Tasks that a deadline has ended; they are cancelled."),
            ("released_attempts", total.released, "Attempts that were handed back, with nothing used."),
        ):
            yield self._one("counter", name, text, number)
        errors = (({"type": kind}, number) for kind, number in total.errors.items())
        yield self._family("counter", "errors", "Failed attempts by the type of their error.", errors)
        for name, durations, text in (
            ("wait_seconds", total.waits, "How long tasks had been due when they were claimed."),
            ("run_seconds", total.runs, "How long calls of the handler took."),
            ("settle_seconds", total.settles, "How long calls took that settled attempts."),
        ):
            yield self._histogram(name, text, _buckets(durations), durations.count, durations.total)
        for name, sizes, text in (
            ("gpu_peak_bytes", total.gpu_peaks, "The most GPU memory that attempts in child processes have used."),
            ("gpu_need_bytes", total.gpu_needs, "The GPU memory that the tasks of the same attempts asked for."),
        ):
            buckets = _buckets(sizes, unit=_GIB, step=_EACH_OCTAVE)
            yield self._histogram(name, text, buckets, sizes.count, sizes.total * _GIB)
        if total.batch_sizes.count:
            found, text = total.batch_sizes, "The number of tasks of a batch."
            yield self._histogram("batch_tasks", text, _buckets(found), found.count, found.total)
            waits, text = total.batch_waits, "How long the oldest task of a batch had been due when it was claimed."
            yield self._histogram("batch_wait_seconds", text, _buckets(waits), waits.count, waits.total)

    def _of_workers(self, workers: Iterable[Worker]) -> Iterator[Metric]:
        fleet = list(workers)
        yield self._one("gauge", "workers", "Live workers, at most 1000.", len(fleet))
        yield self._one("gauge", "slots", "Attempts that live workers may run at a time.", sum(w.slots for w in fleet))
        yield self._one("gauge", "running_slots", "Slots that run an attempt.", sum(w.running for w in fleet))
        releases = Counter(worker.version or "unknown" for worker in fleet)
        text = "Live workers of each release."
        found = (({"version": version}, number) for version, number in releases.items())
        yield self._family("gauge", "workers_of_release", text, found)
        oldest = "For how long the attempt that was claimed first has been running; 0 when none runs."
        yield self._one("gauge", "oldest_running_seconds", oldest, max((w.oldest for w in fleet), default=0))
        for name, attribute, text in (
            ("event_loop_lag_seconds", "lag", "For how long a worker's event loop kept a call waiting."),
            ("slots", "slots", "Attempts that the worker may run at a time."),
            ("running_slots", "running", "Slots of the worker that run an attempt."),
            ("oldest_running_seconds", "oldest", "For how long the oldest attempt of the worker has been running."),
            ("ready", "ready", "1 if the worker runs tasks as it should."),
        ):
            values = (({"worker": worker.name}, getattr(worker, attribute)) for worker in fleet)
            yield self._family("gauge", f"worker_{name}", text, values)

    def _of_gpus(self, gpus: Iterable[GpuStatus]) -> Iterator[Metric]:
        # The numbers are those of all queues: without the label `queue`, a sum over queues counts no GPU twice.
        found = [(_labels(gpu), gpu) for gpu in gpus]
        own = "1 for each GPU of the queue's live workers: it joins the label `queue` to the numbers of GPUs."
        yield self._family("gauge", "gpu_info", own, ((labels, 1) for labels, _ in found))
        for name, attribute, text in (
            ("total", "total_gb", "Memory of the GPU."),
            ("free", "free_gb", "Memory that NVML calls free."),
            ("reserved", "reserved_gb", "Memory reserved for tasks of all queues, used yet or not."),
            ("other_processes", "other_processes_gb", "Memory that other processes use, outside of all queues."),
            ("room", "room_gb", "Memory that is free for a new task."),
        ):
            amounts = ((labels, getattr(gpu, attribute) * _GIB) for labels, gpu in found)
            yield self._shared("gauge", f"gpu_memory_{name}_bytes", text, amounts)
        busy = ((labels, gpu.utilization / 100) for labels, gpu in found if gpu.utilization is not None)
        yield self._shared("gauge", "gpu_utilization_ratio", "Share of the time in which the GPU was busy.", busy)
        warm = ((labels, gpu.temperature) for labels, gpu in found if gpu.temperature is not None)
        yield self._shared("gauge", "gpu_temperature_celsius", "Temperature of the GPU.", warm)
        well = ((labels, gpu.healthy) for labels, gpu in found)
        yield self._shared(
            "gauge", "gpu_healthy", "1 if tasks may start on the GPU; 0 if it is broken or in quarantine.", well
        )
        tasks = ((labels, len(gpu.tasks)) for labels, gpu in found)
        yield self._shared("gauge", "gpu_tasks", "Tasks of all queues on the GPU.", tasks)

    def _one(self, kind: str, name: str, text: str, value: float) -> Metric:
        return self._family(kind, name, text, [({}, value)])

    def _histogram(self, name: str, text: str, buckets: Samples, count: int, total: float) -> Metric:
        family = self._family("histogram", name, text, buckets)
        family.add_sample(f"{family.name}_count", {"queue": self.queue}, count)
        family.add_sample(f"{family.name}_sum", {"queue": self.queue}, total)
        return family

    def _family(self, kind: str, name: str, text: str, samples: Samples) -> Metric:
        return self._shared(kind, name, text, (({"queue": self.queue, **labels}, value) for labels, value in samples))

    def _shared(self, kind: str, name: str, text: str, samples: Samples) -> Metric:
        """Return the family without the label `queue`."""
        family = Metric(f"maas_backoff_{name}", text, kind)
        for labels, value in samples:
            texts = {label: _text(value) for label, value in labels.items()}
            family.add_sample(family.name + _SUFFIXES.get(kind, ""), texts, value)
        return family


def _buckets(found: Durations | MemorySizes | BatchSizes, *, unit: float = 1, step: int = 1) -> Samples:
    """Return the cumulative counts by upper end times `unit`, with each `step` buckets joined to one."""
    counts = list(accumulate(found.counts))
    ends = [(str(end * unit), number) for end, number in zip(found.bounds, counts, strict=False)]
    return (({"le": end}, number) for end, number in [*ends[::step], ("+Inf", counts[-1])])


def _labels(gpu: GpuStatus) -> Labels:
    return {"gpu": gpu.uuid, "index": str(gpu.index), "name": gpu.name, "host": gpu.host}


def _text(value: str) -> str:
    """Return the value of a label as valid UTF-8; prometheus_client escapes quotes, line ends and backslashes."""
    return value.encode(errors="replace").decode()
