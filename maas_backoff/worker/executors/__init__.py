"""How a handler is called."""
