"""Other libraries' names on top of this one."""
