"""Whether a process runs tasks as it should."""

import attrs


@attrs.frozen
class Health:
    """`ready` is for a readiness probe; `reasons` say in words what is wrong."""

    reasons: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether nothing is wrong."""
        return not self.reasons
