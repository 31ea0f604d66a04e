"""How a handler is named, so that another process can find it. Functions are never pickled."""

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any, NoReturn, Self

import attrs

from maas_backoff.errors import HandlerError
from maas_backoff.worker.executors.script import ScriptEnd, script

_MAIN = "__main__"
_SCRIPT = "__mp_main__"  # what multiprocessing calls a script that it loads: guards in the wild know it
_REMEDY = "define a function at the top level of a module and register that"


@attrs.frozen
class HandlerReference:
    """A function's module and its name there; `file` is the script's, for a module that cannot be imported."""

    module: str
    qualname: str
    file: str | None = None

    @classmethod
    def of(cls, handler: Callable[..., Any], *, defined: bool = True) -> Self:
        """Return the reference of `handler`, or raise HandlerError with what to do instead.

        A handler that is being decorated is not `defined` yet: its module does not have it.
        """
        owner, qualname = _names(handler)
        if defined and not _gives(owner, qualname, handler):
            _refuse(f"{owner} does not give it back as {qualname!r}", "register what is found there under that name")
        if owner != _MAIN:
            return cls(owner, qualname)
        path = _main_file()
        spec = getattr(sys.modules[_MAIN], "__spec__", None)
        if spec is not None and spec.name != _MAIN:  # python -m package.module
            return cls(spec.name, qualname)
        return cls(_SCRIPT, qualname, path)

    def load(self) -> Callable[..., Any]:
        """Return the function, or the handler of the kind that it declares; imports its module."""
        module = importlib.import_module(self.module) if self.file is None else _load_script(self.file)
        function: Callable[..., Any] = _handler_of(attrgetter(self.qualname)(module))
        return function


def _names(handler: object) -> tuple[str, str]:
    """Return the module and the qualified name of a function that has both."""
    if isinstance(handler, partial):
        _refuse("a functools.partial has no name", _REMEDY)
    if isinstance(handler, MethodType):
        owner: object = handler.__self__
        if not isinstance(owner, type):
            _refuse("a bound method needs its instance, which lives in this process", _REMEDY)
        module, qualname = owner.__module__, f"{owner.__qualname__}.{handler.__name__}"
    else:
        module, qualname = getattr(handler, "__module__", ""), getattr(handler, "__qualname__", "")
    if not module or not qualname:
        _refuse(f"a callable object ({type(handler).__name__}) has no name", _REMEDY)
    if "<lambda>" in qualname:
        _refuse("a lambda has no name", _REMEDY)
    if "<locals>" in qualname:
        _refuse(f"{qualname} exists only inside the function that made it", _REMEDY)
    return module, qualname


def _gives(module: str, qualname: str, handler: object) -> bool:
    try:
        found = _handler_of(attrgetter(qualname)(sys.modules.get(module)))
        return bool(found == handler)  # bound class methods are equal, not same
    except AttributeError:
        return False


def _handler_of(found: Any) -> Any:
    """Return the handler of a kind, which its module has in the place of the function; else the function itself."""
    return getattr(found, "__task_handler__", found)


def _main_file() -> str:
    """Return the path of the script that runs, if loading it again is safe."""
    path = Path(getattr(sys.modules[_MAIN], "__file__", None) or "")
    if not path.is_file():
        _refuse("__main__ is not a file (an interactive session, stdin, -c or an archive)", _REMEDY)
    if not (script.ends_itself or _is_guarded(path.read_bytes())):
        _refuse(
            f"{path} would run again in each child process",
            'put what starts the program under `if __name__ == "__main__":`, or the handler in a module of its own',
        )
    return str(path.absolute())


def _is_guarded(source: bytes) -> bool:
    import ast  # for the parent only

    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):  # a .pyc; or edited since
        return False
    return any(
        {ast.unparse(side) for side in (test.left, *test.comparators)} == {"__name__", "'__main__'"}
        for statement in statements
        if isinstance(statement, ast.If)
        for test in ast.walk(statement.test)
        if isinstance(test, ast.Compare)
    )


def _load_script(path: str) -> ModuleType:
    """Return the script's module, executed once: handler and lifespan share its globals, as in the parent."""
    loaded = sys.modules.get(_SCRIPT)
    if loaded is not None and getattr(loaded, "__file__", None) == path:
        return loaded
    loader = importlib.machinery.SourceFileLoader(_SCRIPT, path)  # named, for scripts that do not end in .py
    spec = importlib.util.spec_from_file_location(_SCRIPT, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_SCRIPT] = sys.modules[_MAIN] = module
    script.is_loading = True
    try:
        loader.exec_module(module)
    except ScriptEnd:
        pass
    finally:
        script.is_loading = False
    return module


def _refuse(why: str, remedy: str) -> NoReturn:
    raise HandlerError(f"handler: cannot run in a child process: {why}; {remedy}")
