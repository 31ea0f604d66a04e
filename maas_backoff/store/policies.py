"""The policies that this process knows, of its own and other configurations. A policy never changes."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from maas_backoff.config import TaskConfig
from maas_backoff.domain import jsontext
from maas_backoff.domain.policy import Policy
from maas_backoff.store.time_limits import TimeLimits

_NONE: Mapping[str, Any] = MappingProxyType({})
_DEFAULT = TaskConfig().policy
"""The values of options that the stored policy of an older release lacks."""


class Policies:
    """Policies by digest; `own` is the policy of this process's configuration."""

    def __init__(self, own: Policy) -> None:
        self.own = own
        self._known: dict[bytes, Policy] = {own.digest.encode(): own}

    def unknown(self, digests: Iterable[bytes]) -> list[bytes]:
        """Return the digests of policies that must be read first."""
        return sorted(set(digests) - self._known.keys())

    def add(self, digests: Sequence[bytes], texts: Sequence[bytes | None]) -> None:
        """Add policies that were read. If a person has deleted a policy, use the own one for it."""
        for digest, text in zip(digests, texts, strict=True):
            self._known[digest] = self.own if text is None else _DEFAULT.overridden(jsontext.parse(text))

    def effective(self, digest: bytes, overrides: bytes | None) -> tuple[Policy, Mapping[str, Any]]:
        """Return a task's policy with the task's overrides, and the overrides."""
        policy = self._known[digest]
        if not overrides:
            return policy, _NONE
        own: Mapping[str, Any] = jsontext.parse(overrides)
        return policy.overridden(own), own

    @staticmethod
    def limits(overrides: bytes | None) -> TimeLimits | None:
        """Return the deadlines in a task's overrides; None if there are none."""
        return TimeLimits.of(jsontext.parse(overrides)) if overrides else None
