"""The user's credential provider, asked for each new connection."""

from typing import cast

import anyio
from redis.credentials import CredentialProvider

from maas_backoff.errors import StorageDeniedError, StorageUnavailableError

Credentials = tuple[str] | tuple[str, str]


class Credentialed(CredentialProvider):
    """A provider that is asked without blocking the event loop. No error shows the credentials."""

    def __init__(self, provider: CredentialProvider) -> None:
        self._provider = provider

    def get_credentials(self) -> Credentials:
        """Raise NotImplementedError: connections of asyncio call `get_credentials_async`."""
        raise NotImplementedError

    async def get_credentials_async(self) -> Credentials:
        """Return (password,) or (username, password). Raises StorageError."""
        try:
            given: object = await self._given()
        except Exception as error:
            raise StorageUnavailableError(f"the credential provider failed with {type(error).__name__}") from error
        if not isinstance(given, tuple | list):
            given = ()
        words = cast("tuple[object, ...] | list[object]", given)
        if len(words) not in {1, 2} or not all(isinstance(word, str) for word in words):
            raise StorageDeniedError("the credential provider must give (password,) or (username, password), as texts")
        return cast(Credentials, tuple(words))

    async def _given(self) -> object:
        # redis-py's own get_credentials_async calls get_credentials on the event loop, and warns each time.
        if type(self._provider).get_credentials_async is CredentialProvider.get_credentials_async:
            limiter = anyio.CapacityLimiter(1)  # handlers may have taken all threads
            return await anyio.to_thread.run_sync(
                self._provider.get_credentials, abandon_on_cancel=True, limiter=limiter
            )
        return await self._provider.get_credentials_async()
