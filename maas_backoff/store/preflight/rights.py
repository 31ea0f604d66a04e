"""The rights of the server's user, tried by commands that do nothing."""

from maas_backoff.errors import StorageError, StorageUnavailableError
from maas_backoff.store.connect import Client
from maas_backoff.store.preflight.findings import Finding


class Rights:
    """The commands that the server refused to this user, and those that it does not have."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._commands: set[str] = set()
        self._renamed: set[str] = set()
        self._keys = self._channels = False

    @property
    def count(self) -> int:
        return len(self._commands) + len(self._renamed) + self._keys + self._channels

    def add(self, command: str, error: str) -> None:
        """Note a command's error if it names a missing right or command; ignore other errors."""
        text = error.lower()
        if "unknown" in text and "command" in text:
            self._renamed.add(command)
        elif "permission" not in text and "executing the script can't" not in text:
            return
        elif "channel" in text:
            self._channels = True
        elif "key" in text and "access" in text:
            self._keys = True
        else:
            self._commands.add(command)

    async def ask(self, client: Client, *command: str | int) -> None:
        """Send a command that does nothing, and note its error."""
        try:
            await client.execute(*command)
        except StorageUnavailableError:
            raise
        except StorageError as error:
            self.add(str(command[0]), str(error))

    async def subscribe(self, client: Client, channel: str) -> None:
        """Subscribe to a channel and unsubscribe, and note the error."""
        try:
            (await client.subscribe(channel)).close()
        except StorageUnavailableError:
            raise
        except StorageError as error:
            self.add("SUBSCRIBE", str(error))

    def findings(self) -> list[Finding]:
        scripting = {"EVAL", "EVALSHA"}
        found: list[Finding] = []
        if refused := sorted((self._commands | self._renamed) & scripting):
            rules = " ".join(f"+{name.lower()}" for name in refused)
            remedy = (
                f"grant it with ACL SETUSER <user> {rules}" if self._commands & scripting else "remove rename-command"
            )
            found.append(
                Finding(f"the server does not let this user run scripts ({', '.join(refused)}): {remedy}", fatal=True)
            )
        if commands := self._commands - scripting:
            found.append(Finding.commands(commands))
        if renamed := self._renamed - scripting:
            found.append(Finding.renamed(renamed))
        if self._keys:
            found.append(Finding.keys(self._prefix))
        if self._channels:
            found.append(Finding.channels(self._prefix))
        return found
