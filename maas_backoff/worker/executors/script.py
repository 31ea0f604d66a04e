"""The script of a program, which each child process loads anew: the child must not start the program again."""

import attrs


class ScriptEnd(BaseException):
    """Raised where a script would start its program, while a child process loads it: the names so far are enough."""


@attrs.define
class Script:
    """The state of the script in this process."""

    ends_itself: bool = False
    """Whether the script raises ScriptEnd in a child process. It then needs no `if __name__ == "__main__":`."""
    in_child: bool = False
    """Whether this is a child process of a worker."""
    is_loading: bool = False
    """Whether this child process loads the script now."""


script: Script = Script()
"""The script of this process."""
