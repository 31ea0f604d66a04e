"""The health of a worker."""

import attrs


@attrs.frozen
class Health:
    """The health of a worker: `ready` for a readiness probe, and the `reasons` in words if it is not ready."""

    reasons: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether there is no reason against it."""
        return not self.reasons
