"""Handlers for the tests of the process executor; each is run in a child process."""

import asyncio
import contextlib
import ctypes
import functools
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from maas_backoff.domain.result import ResultEntity
from maas_backoff.domain.signals import Discard, RateLimited, Retry, Snooze
from maas_backoff.domain.task import TaskEntity


def params(task: TaskEntity) -> object:
    return task.task_params


def counts(task: TaskEntity) -> object:
    return len(task.task_params["text"])


def pid(task: TaskEntity) -> object:
    return os.getpid()


def whole_task(task: TaskEntity) -> object:
    return task.to_dict()


async def on_a_loop(task: TaskEntity) -> object:
    await asyncio.sleep(0)
    return [os.getpid(), id(asyncio.get_running_loop())]


def fails(task: TaskEntity) -> object:
    return ResultEntity.fail(code=7, message="no model")


def succeeds(task: TaskEntity) -> object:
    return ResultEntity.ok(result={"a": [1, "ü"]})


def strange_fail(task: TaskEntity) -> object:
    return ResultEntity.fail(code=object(), message="a code that is not JSON")


class HostileError(Exception):
    def __str__(self) -> str:
        raise SystemExit(9)


RAISED = {
    "value": lambda: ValueError("broken"),
    "retry": lambda: Retry(after=5, reason="later"),
    "snooze": lambda: Snooze(after=7),
    "limited": lambda: ExceptionGroup("both", [RateLimited(20, limit="openai"), RateLimited(3)]),
    "discard": lambda: Discard("useless"),
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "cancelled": asyncio.CancelledError,
    "generator": GeneratorExit,
    "stop": lambda: StopIteration(1),
    "group": lambda: BaseExceptionGroup("group", [SystemExit(1), ValueError("x")]),
    "hostile": HostileError,
    "long": lambda: ValueError("x" * 10_000_000),
    "surrogate": lambda: ValueError("\ud800"),
}


def raises(task: TaskEntity) -> object:
    error = RAISED[task.task_params["what"]]()
    raise error


async def raises_on_a_loop(task: TaskEntity) -> object:
    await asyncio.sleep(0)
    error = RAISED[task.task_params["what"]]()
    raise error


def returns_what_json_cannot_hold(task: TaskEntity) -> object:
    return {"ok": [1, {2, 3}]}


async def returns_a_generator(task: TaskEntity) -> object:
    return (number for number in range(3))


def returns_much(task: TaskEntity) -> object:
    return "x" * task.task_params["size"]


def returns_quotes(task: TaskEntity) -> object:
    return [""] * task.task_params["count"]


def recurses(task: TaskEntity) -> object:
    return recurses(task)


def out_of_memory(task: TaskEntity) -> object:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, hard))
    try:
        return len(bytearray(4 << 30))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def progresses(task: TaskEntity) -> object:
    task.update_progress(10)
    task.update_progress(55.5, "half " + "x" * 100_000)
    thread = threading.Thread(target=task.update_progress, args=(90, "thread"))
    thread.start()
    thread.join()
    return "done"


def uses(task: TaskEntity) -> object:
    task.used(cost=3, limits={"openai": 10})
    thread = threading.Thread(target=task.used, kwargs={"limits": {"openai": 830}})
    thread.start()
    thread.join()
    for wrong in ({"cost": -1}, {"limits": {"other": 1}}):
        with contextlib.suppress(ValueError):
            task.used(**wrong)
    return "done"


async def progresses_too_far(task: TaskEntity) -> object:
    task.update_progress(101)


LATE: list[TaskEntity] = []


def progresses_late(task: TaskEntity) -> object:
    for earlier in LATE:
        earlier.update_progress(99, "of a call that is over")
    LATE.append(task)


def reports_as_if_of_an_earlier_call(task: TaskEntity) -> object:
    if LATE:
        server = task._receiver.server  # type: ignore[union-attr] # the ReportReceiver of child_reports.py
        server._connection.send({"progress": 99, "message": "of a call that is over", "call": 1})
    LATE.append(task)


def prints(task: TaskEntity) -> object:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    os.write(1, b"\x00\x00\x00\x02{}\n")
    os.system("echo from a shell")
    os.write(2, b"\xff\r10 %\r20 %\r" + b"y" * 10_000 + b"\n")
    print("no newline", end="")
    return "printed"


def prints_much(task: TaskEntity) -> object:
    for number in range(1000):
        print(f"{number:0100}")
    return "printed"


def forks(task: TaskEntity) -> object:
    child = os.fork()
    if child == 0:
        task.update_progress(1, "from the fork")
        return "from the fork"
    os.waitpid(child, 0)
    return "from the child"


async def forks_on_a_loop(task: TaskEntity) -> object:
    child = os.fork()
    if child == 0:
        raise ValueError("from the fork")
    os.waitpid(child, 0)  # noqa: ASYNC222 - the loop has nothing else to do
    await asyncio.sleep(0)
    return "from the child"


def fork_stays(task: TaskEntity) -> object:
    """A forked process that outlives its parent, out of its group, and could hold the socket open."""
    child = os.fork()
    if child == 0:
        os.setsid()
        Path(task.task_params["file"]).write_text(str(os.getpid()))
        time.sleep(20)
        os._exit(0)
    while not Path(task.task_params["file"]).exists():
        time.sleep(0.01)
    os._exit(5)


def program_stays(task: TaskEntity) -> object:
    """A program that outlives its parent, out of its group, with copies of all descriptors that may be inherited."""
    program = subprocess.Popen(["sleep", "20"], close_fds=False, start_new_session=True)
    Path(task.task_params["file"]).write_text(str(program.pid))
    os._exit(5)


def forked_can_be_terminated(task: TaskEntity) -> object:
    child = os.fork()
    if child == 0:
        time.sleep(20)
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    program = subprocess.Popen(["sleep", "20"])
    program.terminate()
    return [os.WTERMSIG(os.waitpid(child, 0)[1]), -program.wait()]


def survives_sigterm(task: TaskEntity) -> object:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    return "alive"


def dies(task: TaskEntity) -> object:
    match task.task_params["how"]:
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "exit 0":
            os._exit(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "abort":
            os.abort()
        case "real-time signal":
            os.kill(os.getpid(), signal.SIGRTMIN + 1)
    return os.getpid()


def dies_after_a_task(task: TaskEntity) -> object:
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return os.getpid()


def dies_with_a_full_pipe(task: TaskEntity) -> object:
    print("last words", end="", flush=True)
    os._exit(4)


def closes(task: TaskEntity) -> object:
    for fd in task.task_params["fds"]:
        os.close(fd)
    return os.getpid()


def closes_everything(task: TaskEntity) -> object:
    os.closerange(3, 256)
    time.sleep(20)


def writes_to_every_socket(task: TaskEntity) -> object:
    for fd in range(3, 256):
        with contextlib.suppress(OSError):
            os.write(fd, task.task_params["text"].encode())
    time.sleep(20)


def moves(task: TaskEntity) -> object:
    before = str(Path.cwd())
    os.chdir("/")
    return before


def waits(task: TaskEntity) -> None:
    time.sleep(30)


def blocks(task: TaskEntity) -> object:
    """Sleeps in C, deaf to SIGTERM, with a process of its own; tells both process ids."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    program = subprocess.Popen(["sleep", "30"])
    task.update_progress(1, f"{os.getpid()} {program.pid}")
    ctypes.CDLL(None).sleep(30)


async def cancels_itself(task: TaskEntity) -> object:
    asyncio.current_task().cancel()
    return os.getpid()


async def stops_its_loop(task: TaskEntity) -> object:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(10)


async def child_task_exits(task: TaskEntity) -> object:
    async def leave() -> None:
        sys.exit(1)

    await asyncio.create_task(leave())


class Methods:
    @classmethod
    def named(cls, _task: TaskEntity) -> object:
        return cls.__name__

    @staticmethod
    def still(_task: TaskEntity) -> object:
        return "static"

    def bound(self, _task: TaskEntity) -> object:
        return None

    def __call__(self, _task: TaskEntity) -> object:
        return None


class Heir(Methods):
    pass


def _decorated(function: Callable[[TaskEntity], object]) -> Callable[[TaskEntity], object]:
    @functools.wraps(function)
    def wrapper(task: TaskEntity) -> object:
        return ["wrapped", function(task)]

    return wrapper


def _original(task: TaskEntity) -> object:
    return "original"


wrapped = _decorated(params)
renamed = _original
_renamed, _original = _original, None
anonymous = lambda _task: None  # noqa: E731 - what is refused
curried = functools.partial(params)


@_decorated
def decorated(task: TaskEntity) -> object:
    return "inner"


def made_inside() -> object:
    def inner(task: TaskEntity) -> object:
        return None

    return inner


logger = logging.getLogger("my.service")


def logs(task: TaskEntity) -> None:
    logger.info("told as info")
    try:
        raise ValueError("broken \x1b[2J")
    except ValueError:
        logger.exception("told as error: %d", 5)
    logger.info("extra", extra={"size": 3, "shape": (1, 2), "model": Model()})
    thread = threading.Thread(target=logger.info, args=("from a thread",), name="mine")
    thread.start()
    thread.join()


class Model:
    def __str__(self) -> str:
        return "<model>"


def logs_at_all_levels(task: TaskEntity) -> None:
    for name in ("my.service", "my.other", "my.third"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger(name).log(level, "told")


def logs_what_is_hostile(task: TaskEntity) -> None:
    logger.error("%d and %d", 1)  # noqa: PLE1206 - that is what is wrong
    logger.error("%s", HostileError())
    logger.error("\ud800")
    logger.error("x" * 10_000_000)
    logger.error("many fields", extra={f"field_{n}": "x" * 4000 for n in range(200)})
    logger.error("raised", exc_info=HostileError())
    logger.error("with an object", extra={"object": HostileError()})


def logs_much(task: TaskEntity) -> None:
    for number in range(1 if "once" in task.task_params else 10_000):
        logger.info("%d", number)


def logs_in_a_fork(task: TaskEntity) -> None:
    child = os.fork()
    if child == 0:
        logger.info("from the fork")
        os._exit(0)
    os.waitpid(child, 0)
    logger.info("from the child")


def batch(tasks: list[TaskEntity]) -> object:
    """Return for each task its own result: "slow" is slow to encode, "raise" is an exception, others are the pid.

    "exit" ends the process, and "wait" makes the file `began` and waits for the file `go`.
    """
    from slow_values import SlowToEncode  # a program of a test imports this module alone

    values: list[object] = []
    for task in tasks:
        params = task.task_params
        print("printed by", task.task_id, flush=True)
        if params["what"] == "slow":
            values.append(SlowToEncode(params["path"]))
        elif params["what"] == "raise":
            values.append(ValueError("broken"))
        elif params["what"] == "exit":
            os._exit(7)
        else:
            if params["what"] == "wait":
                (Path(params["path"]) / "began").touch()
                while not (Path(params["path"]) / "go").exists():
                    time.sleep(0.002)
            values.append(os.getpid())
    return values
