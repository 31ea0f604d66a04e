"""The slot of a batch: its attempts share one place."""


class SharedSlot:
    """Counts the attempts of a batch that have its slot, and those whose settlement is on its way."""

    held: int = 0
    """Attempts that are not settled, or whose settlement is not answered."""
    running: int = 0
    """Attempts that have not ended. The last one gives the reservation on a GPU back."""
    has_ended: bool = False
    """Whether the call of the handler has ended: the next batch may be claimed while this one is settled."""
    is_ending: bool = False
    """Whether the call should end in a moment: the next batch may be claimed for its slot."""
    is_waiting: bool = False
    """Whether the batch was claimed ahead, and its slot is not free yet."""
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

    def start(self) -> None:
        """Start a batch that waits: its slot is free."""
        self.is_waiting = False

    def hand_back(self) -> None:
        """Give back the tasks of a batch that waits."""
        self.is_waiting = False
