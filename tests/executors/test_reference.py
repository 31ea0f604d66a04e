"""How a handler is named for another process, and what is refused, with the remedy."""

import os
import subprocess
import sys
from pathlib import Path

import child_handlers as handlers
import pytest

from maas_backoff.errors import HandlerError
from maas_backoff.worker.executors.base import Handler
from maas_backoff.worker.executors.reference import HandlerReference


class TestNamed:
    @pytest.mark.parametrize(
        ("handler", "qualname"),
        [
            (handlers.params, "params"),
            (handlers.on_a_loop, "on_a_loop"),
            (handlers.decorated, "decorated"),
            (handlers.Methods.still, "Methods.still"),
            (handlers.Methods.named, "Methods.named"),
            (handlers.Heir.named, "Heir.named"),
        ],
    )
    def test_what_a_module_gives_is_found_again(self, handler: Handler, qualname: str) -> None:
        """Functions, decorated ones, static methods, and class methods of the class that was meant."""
        reference = HandlerReference.of(handler)
        assert reference == HandlerReference("child_handlers", qualname)
        assert reference.load() == handler


class TestRefused:
    @pytest.mark.parametrize(
        ("handler", "why"),
        [
            (handlers.anonymous, "a lambda has no name"),
            (handlers.curried, "a functools.partial has no name"),
            (handlers.made_inside(), "made_inside.<locals>.inner exists only inside the function that made it"),
            (handlers.Methods().bound, "a bound method needs its instance, which lives in this process"),
            (handlers.Methods(), "a callable object (Methods) has no name"),
            (handlers.renamed, "child_handlers does not give it back as '_original'"),
            (handlers.wrapped.__wrapped__, None),
            (handlers.decorated.__wrapped__, "child_handlers does not give it back as 'decorated'"),
        ],
    )
    def test_what_no_other_process_can_find(self, handler: Handler, why: str | None) -> None:
        """The error says why, and what to do instead; what is found under its own name is accepted."""
        if why is None:
            assert HandlerReference.of(handler).load() is handler
            return
        with pytest.raises(HandlerError) as caught:
            HandlerReference.of(handler)
        text = str(caught.value)
        assert text.startswith(f"handler: cannot run in a child process: {why}; ")
        assert "register" in text.rsplit(";", 1)[1]


SCRIPT = """
import asyncio, sys, time
from maas_backoff.config import ThreadPoolConfig
from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import HandlerError
from maas_backoff.worker.executors.process import ProcessExecutor

print("loaded as", __name__)
LOADED_AS = __name__

def handler(task):
    import __main__
    return [LOADED_AS, __main__.LOADED_AS, task.task_params["a"]]

class Call:
    task = TaskEntity("id", "q", {"a": 1})
    grant = None
    span = None
    start_before = time.monotonic() + 600
    earlier = ()
    def started(self): pass

async def main():
    executor = ProcessExecutor(handler, ThreadPoolConfig(warm_children=1), max_payload_bytes=1000)
    try:
        await executor.start()
        print((await executor.run(Call())).result)
    except HandlerError as error:
        print("refused:", error)
    finally:
        await executor.aclose()

"""
LIFESPAN = """
import contextlib, os
os.environ["LOADS"] = os.environ.get("LOADS", "") + "1"
MODEL = None

@contextlib.contextmanager
def lifespan():
    global MODEL
    MODEL = "loaded"
    yield

def handler(task, _):"""
GUARD = 'if __name__ == "__main__":\n    asyncio.run(main())\n'


def run(folder: Path, *arguments: str, stdin: str = "", cwd: Path | None = None) -> list[str]:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=cwd or folder,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


class TestScripts:
    @pytest.mark.parametrize("name", ["worker.py", "worker"])
    def test_a_script_with_a_guard(self, tmp_path: Path, name: str) -> None:
        """A handler in __main__ is loaded from the script's file, whose guarded part does not run again."""
        (tmp_path / name).write_text(SCRIPT + GUARD)
        assert run(tmp_path, name) == ["loaded as __main__", '["__mp_main__","__mp_main__",1]']

    def test_a_script_is_executed_once_in_a_child(self, tmp_path: Path) -> None:
        """A global that the worker_lifespan sets is there for the handler: both are of one module."""
        source = SCRIPT.replace("def handler(task):", LIFESPAN).replace("=1000)", "=1000, lifespan=lifespan)")
        source = source.replace('task.task_params["a"]]', "MODEL, os.environ['LOADS']]") + GUARD
        (tmp_path / "worker.py").write_text(source)
        assert run(tmp_path, "worker.py")[1] == '["__mp_main__","__mp_main__","loaded","11"]'

    def test_a_module_that_runs_as_a_script(self, tmp_path: Path) -> None:
        """`python -m package.module`: children import it by the name it was started with."""
        (tmp_path / "package").mkdir()
        (tmp_path / "package" / "module.py").write_text(
            SCRIPT.replace("import __main__", "import package.module as __main__") + GUARD
        )
        assert run(tmp_path, "-m", "package.module")[1] == '["package.module","package.module",1]'

    def test_a_folder_that_runs_as_a_script(self, tmp_path: Path) -> None:
        """`python folder`, with its __main__.py."""
        (tmp_path / "__main__.py").write_text(SCRIPT + GUARD)
        assert run(tmp_path, str(tmp_path))[1] == '["__mp_main__","__mp_main__",1]'

    @pytest.mark.parametrize("guard", ["if '__main__' == __name__:", 'if True and __name__ == "__main__":'])
    def test_guards_in_other_words(self, tmp_path: Path, guard: str) -> None:
        """A comparison of __name__ with "__main__" at the top level is a guard."""
        (tmp_path / "worker.py").write_text(f"{SCRIPT}{guard}\n    asyncio.run(main())\n")
        assert run(tmp_path, "worker.py")[1].startswith("[")

    def test_a_script_without_a_guard_is_refused(self, tmp_path: Path) -> None:
        """It would start over in each child; said at start, with the remedy."""
        (tmp_path / "worker.py").write_text(SCRIPT + "asyncio.run(main())\n")
        assert run(tmp_path, "worker.py")[1] == (
            f"refused: handler: cannot run in a child process: {tmp_path / 'worker.py'} would run again in each child "
            'process; put what starts the program under `if __name__ == "__main__":`, or the handler in a module of '
            "its own"
        )

    def test_no_file_is_refused(self, tmp_path: Path) -> None:
        """A handler that was typed in, or came by stdin or -c, is nowhere to be loaded from."""
        for lines in (run(tmp_path, "-", stdin=SCRIPT + GUARD), run(tmp_path, "-c", SCRIPT + GUARD)):
            assert "__main__ is not a file" in lines[1]

    def test_what_lies_about_is_not_imported(self, tmp_path: Path) -> None:
        """A json.py in the working directory of a script that lives elsewhere does not reach the child."""
        folder, here = tmp_path / "app", tmp_path / "here"
        folder.mkdir()
        here.mkdir()
        (folder / "worker.py").write_text(SCRIPT + GUARD)
        (here / "json.py").write_text("raise SystemExit('wrong json')")
        assert run(folder, str(folder / "worker.py"), cwd=here)[1] == '["__mp_main__","__mp_main__",1]'

    def test_a_module_that_cannot_be_imported_there(self, tmp_path: Path) -> None:
        """The child's own words come with the error at start."""
        guarded = SCRIPT.replace(
            "LOADED_AS = __name__", 'LOADED_AS = __name__\nif __name__ == "__mp_main__": sys.exit("no GPU here")'
        )
        (tmp_path / "worker.py").write_text(guarded + GUARD)
        text = "\n".join(run(tmp_path, "worker.py"))
        assert "refused: handler: cannot run in a child process: its module cannot be imported there:" in text
        assert "SystemExit: no GPU here" in text
