"""The slot of a batch: its attempts share one place."""


class SharedSlot:
    """Counts the attempts of a batch that have its slot, and those whose settlement is on its way."""

    held: int = 0
    """Attempts that are not settled, or whose settlement is not answered."""
    running: int = 0
    """Attempts that have not ended. The last one gives the reservation on a GPU back."""
    has_ended: bool = False
    """Whether the call of the handler has ended: the next batch may be claimed while this one is settled."""
    sent: int = 0
    """Attempts whose settlement is on its way."""

    @property
    def is_leaving(self) -> bool:
        """Whether all settlements are on their way: the slot will be free."""
        return self.held == self.sent

    @property
    def extra(self) -> int:
        """How many attempts, of those whose settlement is not on its way, need no slot of their own."""
        return max(0, self.held - self.sent - 1)
