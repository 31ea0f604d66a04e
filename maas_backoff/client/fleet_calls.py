"""The calls on the workers of a queue, and on their GPUs."""

from maas_backoff.client.part import CallsPart
from maas_backoff.domain.gpu import GpuStatus
from maas_backoff.domain.worker import Worker


class FleetCalls(CallsPart):
    """The part of TaskBackoffScheduler that looks at workers and GPUs, and takes them out of use."""

    async def workers(self) -> list[Worker]:
        """Return the live workers of this queue, as of their last heartbeat; at most 1,000."""
        return list(await self._client.store.registry.fleet())

    async def gpus(self) -> list[GpuStatus]:
        """Return the GPUs of all live workers of this queue, with the reservations of all queues."""
        return await self._client.fleet.gpus()

    async def quiet_workers(self, name: str, *, on: bool = True) -> list[Worker]:
        """Tell live workers to claim nothing more; `on=False` undoes it. Running attempts go on.

        `name` is the name of a worker, the name's beginning up to a `-`, such as a `worker_name`, or a host: all
        workers that it means are returned. A worker notes it at its next heartbeat, which comes every third of a
        `lease`, and shows it as `quiet` from the heartbeat after that. A worker that is started later is not quiet.
        """
        return await self._client.fleet.quiet(name, on=on)

    async def quarantine_gpu(self, gpu: str, reason: str = "") -> str:
        """Start no task on a GPU, in any queue on this server, until `release_gpu`. Return its UUID.

        `gpu` is the UUID of a GPU of a live worker, or the UUID's beginning. Running attempts go on. The quarantine is
        kept on the server, in the ledger of the GPU. `reason` is shown with the GPU. Raises InvalidValueError for an
        unknown GPU.
        """
        return await self._client.fleet.quarantine(gpu, reason)

    async def release_gpu(self, gpu: str) -> bool:
        """End the quarantine of a GPU, by `quarantine_gpu` or after faults. Return False if it was in none."""
        return await self._client.fleet.release(gpu)
