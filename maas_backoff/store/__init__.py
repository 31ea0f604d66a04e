"""The durable state: Redis, Valkey, embedded Valkey."""
