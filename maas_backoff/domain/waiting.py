"""Why a pending task waits."""

from datetime import UTC, datetime

from maas_backoff.domain.policy import Policy


def waiting_for(due_ms: float, now_ms: float, policy: Policy, workers: int) -> str:
    """Return the reason in words; `workers` is how many are alive."""
    if due_ms > now_ms:
        return f"due at {at(due_ms).isoformat(timespec='milliseconds')}"
    if policy.needs_gpu:
        return f"gpu: needs {_need(policy)}, and no worker here looks after GPUs"
    if not workers:
        return "worker: none is running"
    return "slot"


def at(ms: float) -> datetime:
    """Return the aware datetime of a server time in ms."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def _need(policy: Policy) -> str:
    needs: list[str] = []
    if policy.min_gpu_memory_gb:
        needs.append(f"{policy.min_gpu_memory_gb:g} GiB free")
    if policy.max_gpu_utilization:
        needs.append(f"utilisation below {policy.max_gpu_utilization:g} %")
    return " and ".join(needs)
