"""The public race: maas_backoff and its peers, each in its own virtual environment, on the same server.

The queues take turns, round by round, in an order that moves on by one each round, so that the noise of a shared
machine hits all alike. Run it with `nox -s bench-peers`, or give each queue's Python:
`python benchmarks/race.py --python ours=.venv/bin/python --python arq=venvs/arq/bin/python --only ours,arq`.
A queue for Node.js needs `node`, and `--venvs` with its packages; the race says so where it is left out.
A whole race writes RESULTS.md and results.svg beside this file; a part of it does so only with `--output`.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peers.common import ATTEMPTS, FORBEARANCE, TASKS, command, info
from server import machine, started_server

HERE = Path(__file__).parent
QUEUES = {
    "ours": "ours.py",
    "arq": "arq_.py",
    "saq": "saq_.py",
    "streaq": "streaq_.py",
    "docket": "docket_.py",
    "taskiq": "taskiq_.py",
    "dramatiq": "dramatiq_.py",
    "huey": "huey_.py",
    "bullmq": "bullmq_.py",
    "bullmq-node": "bullmq_node.mjs",
}
ONCE = ("memory", "startup", "kill")
AT_ONCE = 4
"""The queues of `kill` that run side by side. They mostly wait for a time-out."""
PATIENCE = 900


@dataclass(frozen=True)
class Measure:
    """One row of the table."""

    workload: str
    key: str
    title: str
    unit: str
    more: bool = False  # more is better
    drawn: bool = True
    compared: bool = True

    def text(self, value: float | None) -> str:
        if value is None:
            return f"not within {FORBEARANCE:.0f} s"
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
        return f"{value:,.{digits}f}"

    def beats(self, one: float | None, other: float | None) -> bool:
        """Tell whether `one` is better than `other` by more than 2 %; None is worse than any number."""
        if one is None or other is None:
            return one is not None and other is None
        return one > other * 1.02 if self.more else one < other / 1.02


MEASURES = (
    Measure("drain", "rate", "drain", "tasks/s", more=True),
    Measure("drain", "created", "enqueue, all at once", "tasks/s", more=True),
    Measure("create", "rate", "enqueue, one after the other", "tasks/s", more=True),
    Measure("crowd", "rate", "enqueue, 100 coroutines", "tasks/s", more=True),
    Measure("latency", "p50", "latency, median", "ms"),
    Measure("latency", "p99", "latency, 99th percentile", "ms"),
    Measure("lone", "server", "server time, a task every 5 ms", "µs per task"),
    Measure("lone", "idle", "server time, idle worker", "µs per s", drawn=False),
    Measure("delayed", "p50", "lateness of delayed tasks, median", "ms"),
    Measure("delayed", "p99", "lateness of delayed tasks, 99th percentile", "ms", drawn=False),
    Measure("delayed", "first", "lateness of delayed tasks, the earliest", "ms", drawn=False, compared=False),
    Measure("retry", "seconds", "two retries each", "s"),
    Measure("memory", "bytes", "server memory per waiting task", "bytes"),
    Measure("startup", "cpu", "import in a fresh process, CPU time", "ms"),
    Measure("kill", "first", "first task of a killed worker done after", "s", drawn=False, compared=False),
    Measure("kill", "seconds", "all tasks of a killed worker done after", "s", drawn=False),
)


@dataclass
class Entrant:
    """A queue in the race, and what was measured."""

    name: str
    program: str
    """Its Python, or `node`."""
    modules: str = ""
    """The folder with the packages of Node.js."""
    about: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, list[dict[str, float | None]]] = field(default_factory=dict)
    errors: dict[str, list[str]] = field(default_factory=dict)

    def run(self, workload: str, *options: str) -> dict[str, Any]:
        """Run the adapter; end it and the workers that it started, whatever happens."""
        adapter = HERE / "peers" / QUEUES[self.name]
        process = subprocess.Popen(
            [self.program, str(adapter), workload, *options],
            env={**os.environ, "RACE_MODULES": self.modules},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return {"error": f"no result within {PATIENCE} s"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode or not out.strip():
            lines = err.strip().splitlines()
            return {"error": lines[-1] if lines else f"exit code {process.returncode}"}
        report: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return report

    def race(self, workload: str, server: str, queue: str, tasks: int) -> str:
        report = self.run(workload, f"--url={server}", f"--queue={queue}", f"--tasks={tasks}")
        if report["error"]:
            self.errors.setdefault(workload, []).append(report["error"])
            return f"failed: {report['error']}"
        self.metrics.setdefault(workload, []).append(report["metrics"])
        return "  ".join(
            f"{key} {'-' if value is None else f'{value:,.2f}'}" for key, value in report["metrics"].items()
        )

    def values(self, measure: Measure) -> list[float | None]:
        return [metrics[measure.key] for metrics in self.metrics.get(measure.workload, ())]

    def median(self, measure: Measure) -> float | None:
        """Return the median; None counts as endless."""
        found = statistics.median_high([math.inf if value is None else value for value in self.values(measure)])
        return None if found == math.inf else statistics.median([v for v in self.values(measure) if v is not None])

    def missing(self, workload: str) -> str | None:
        """Say why there is no number: `n/a` or `failed`; the reason is in a footnote."""
        if workload in self.about["unable"]:
            return "n/a"
        if workload in self.metrics:
            return None
        return "failed" if workload in self.errors else "not run"

    def cell(self, measure: Measure) -> str:
        """Return the median, and how many rounds failed, which do not count for it."""
        missing = self.missing(measure.workload)
        if missing:
            return missing
        text = measure.text(self.median(measure))
        failed = len(self.errors.get(measure.workload, ()))
        return f"{text}, {failed} of {failed + len(self.metrics[measure.workload])} failed" if failed else text


def table(entrants: list[Entrant], measures: list[Measure]) -> list[str]:
    """Return the table and its footnotes."""
    notes: list[str] = []

    def cell(entrant: Entrant, measure: Measure) -> str:
        workload = measure.workload
        reasons = [entrant.about[kind].get(workload) for kind in ("unable", "notes")]
        reasons += dict.fromkeys(entrant.errors.get(workload, ()))
        text = entrant.cell(measure)
        if best.get(measure) is entrant:
            text = f"**{text}**"
        for note in (f"{entrant.name}, {workload}: {reason}" for reason in reasons if reason):
            if note not in notes:
                notes.append(note)
            text += f" [{notes.index(note) + 1}]"
        return text

    best: dict[Measure, Entrant] = {}
    for measure in measures:
        able = [entrant for entrant in entrants if entrant.missing(measure.workload) is None]
        if able and measure.compared:
            sign = -1 if measure.more else 1
            worst = math.inf
            best[measure] = min(
                able, key=lambda one, m=measure, s=sign, w=worst: w if (v := one.median(m)) is None else s * v
            )
    lines = [
        "| | " + " | ".join(entrant.name for entrant in entrants) + " |",
        "|---|" + "---|" * len(entrants),
    ]
    for measure in measures:
        arrow = "" if not measure.compared else ", more is better" if measure.more else ", less is better"
        cells = " | ".join(cell(entrant, measure) for entrant in entrants)
        lines.append(f"| {measure.title} ({measure.unit}{arrow}) | {cells} |")
    return [*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]


def better_peers(entrants: list[Entrant], measures: list[Measure]) -> list[str]:
    """Return one paragraph for every row where another queue is better than ours."""
    ours = next((entrant for entrant in entrants if entrant.name == "ours"), None)
    if ours is None:
        return []
    paragraphs = []
    for measure in measures:
        if not measure.compared or ours.missing(measure.workload):
            continue
        mine = ours.median(measure)
        able = [one for one in entrants if one is not ours and one.missing(measure.workload) is None]
        ahead = [one for one in able if measure.beats(one.median(measure), mine)]
        if not ahead:
            continue
        sentences = [f"**{measure.title}**: ours {measure.text(mine)} {measure.unit}."]
        for one in sorted(ahead, key=lambda one, m=measure: one.median(m) or 0, reverse=measure.more):
            value = one.median(measure)
            times = f", {max(value / mine, mine / value):.2f} times as good" if value and mine else ""
            reason = one.about["ahead"].get(measure.workload, "We know no single reason.")
            sentences.append(f"{one.name} has {measure.text(value)}{times}. {reason}")
        paragraphs += [" ".join(sentences), ""]
    return paragraphs


def ranges(entrants: list[Entrant], measures: list[Measure]) -> list[str]:
    """Return the lowest and the highest round behind each median."""
    lines = ["| | " + " | ".join(entrant.name for entrant in entrants) + " |", "|---|" + "---|" * len(entrants)]
    for measure in measures:
        if measure.workload in ONCE:
            continue
        cells = []
        for entrant in entrants:
            found = [value for value in entrant.values(measure) if value is not None]
            cells.append(f"{measure.text(min(found))} … {measure.text(max(found))}" if found else "-")
        lines.append(f"| {measure.title} ({measure.unit}) | " + " | ".join(cells) + " |")
    return lines


@dataclass
class Circumstances:
    """How the race was run, as far as it bears on what the numbers mean."""

    divided: int = 1
    left_out: dict[str, str] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)

    def note_load(self) -> None:
        self.loads.append(os.getloadavg()[0])

    def sentences(self) -> list[str]:
        cores = os.cpu_count() or 1
        told = [f"The load average was {min(self.loads):.1f} to {max(self.loads):.1f} on {cores} cores."]
        if max(self.loads) > 2 * cores:
            told.append(
                "**Other programs used the machine during this race.** Compare the queues with each other, and not the "
                "absolute numbers with those of another race."
            )
        if self.divided > 1:
            told.append(f"This was a small race: it had {self.divided} times fewer tasks than a whole one.")
        told += [f"**{name} is left out**: {reason}." for name, reason in self.left_out.items()]
        return told


def in_short(entrants: list[Entrant], measures: list[Measure]) -> str:
    """Return one sentence that names each row where another queue is better than ours."""
    rows = [paragraph.split("**")[1] for paragraph in better_peers(entrants, measures) if paragraph]
    if not rows:
        return "No other queue is better than ours in any row."
    many = sum(measure.compared for measure in measures)
    return f"Another queue is better than ours in {len(rows)} of {many} rows: {'; '.join(rows)}. Reasons are below."


def document(
    entrants: list[Entrant], tasks: dict[str, int], rounds: int, server: str, circumstances: Circumstances
) -> str:
    measures = [measure for measure in MEASURES if measure.workload in tasks]
    about_server = info(server, "server")
    counts = {workload: f"{count:,}" for workload, count in (TASKS | tasks).items()}
    what = {
        "drain": f"{counts['drain']} no-op tasks with params of about 50 bytes are enqueued the fastest way that the "
        "queue's documentation has; then one worker in one process with 100 slots runs them. The clock runs from the "
        "first call of the handler until the queue has recorded the end of the last task, results included where the "
        "queue stores them by default. Each task must run once.",
        "create": f"{counts['create']} enqueues, each awaited before the next.",
        "crowd": f"100 coroutines share {counts['crowd']} enqueues; each awaits its own before its next.",
        "lone": f"A worker idles in another process; {counts['lone']} tasks are enqueued, one every 5 ms. The server's "
        "CPU time (`INFO cpu`) per task, less what the server takes in that time for the idle worker. That is in the "
        "row below.",
        "startup": "A fresh process imports what a program needs that enqueues and works. The CPU time of that "
        f"process, less that of one that imports nothing; the median of {counts['startup']} turns.",
        "latency": f"A worker idles in another process; {counts['latency']} tasks are enqueued, one every 20 ms. From "
        "just before the enqueue to the start of the handler.",
        "delayed": f"{counts['delayed']} tasks fall due evenly over 1 to 6 s from now. From the due time to the start "
        "of the handler.",
        "retry": f"{counts['retry']} tasks fail twice, and wait 0.1 s before each retry. The clock is that of `drain`. "
        f"Each task must run {ATTEMPTS} times.",
        "memory": f"`used_memory` of the server after {counts['memory']} enqueues with params of about 100 bytes, less "
        "that before, per task.",
        "kill": f"{counts['kill']} tasks of 2 s run in a worker that is killed (SIGKILL); another is started on the "
        f"same machine. {AT_ONCE} queues take this test side by side. From the kill until all ran to their end, at "
        f"most {FORBEARANCE:.0f} s. Leases and time-outs are each queue's defaults; every queue can be told shorter "
        "ones.",
    }
    versions = [
        ", ".join(f"{package} {version}" for package, version in one.about["versions"].items()) for one in entrants
    ]
    pythons = sorted({one.about["python"] for one in entrants if "python" in one.about})
    better = better_peers(entrants, measures)
    opening = (
        f"Written by `race.py` on {datetime.now(UTC):%Y-%m-%d}. Python {', '.join(pythons)} with asyncio's own event "
        f"loop for all; Redis {about_server['redis_version']} without persistence, on the same machine: {machine()}, "
        f"{platform.system()}. The queues took turns, {rounds} times; the numbers are "
        "medians of the rounds (memory, import and kill: one round). A round in which a task did not run as often as "
        "it should has failed and does not count for the median."
    )
    rule = (
        "The rule: 100 slots, results as the queue stores them by default, and else each queue's own best settings; "
        "queues that poll may do so every 10 ms. Nobody logs. All that use redis-py have hiredis."
    )
    return "\n".join(
        [
            "# The race",
            "",
            opening,
            "",
            *circumstances.sentences(),
            "",
            in_short(entrants, measures),
            "",
            "![The results as bars](results.svg)",
            "",
            *table(entrants, measures),
            "",
            "## The measurements",
            "",
            *(f"- `{workload}`: {what[workload]}" for workload in tasks),
            "",
            "## Where another queue is better",
            "",
            *(better or ["Nowhere in this race.", ""]),
            "## How each was set",
            "",
            rule,
            "",
            *(f"- {one.name}: {one.about['settings']} *{line}*" for one, line in zip(entrants, versions, strict=True)),
            "",
            "## The lowest and the highest round",
            "",
            *ranges(entrants, measures),
            "",
        ]
    )


STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .unit { fill: #656d76 }
.bar { fill: #8c959f } .ours { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .unit { fill: #9198a1 } .bar { fill: #656c76 } .ours { fill: #4493f8 }
}
"""
PANEL_WIDTH, BAR_HEIGHT, LABEL, LONGEST = 450, 19, 84, 250


def panel(entrants: list[Entrant], measure: Measure, left: int, top: int) -> list[str]:
    """Draw one measure as bars; with a logarithmic scale where the longest would dwarf the others."""
    able = [one for one in entrants if one.missing(measure.workload) is None]
    numbers = {one.name: value for one in able if (value := one.median(measure)) is not None}
    low, high = min(numbers.values(), default=1), max(numbers.values(), default=1)
    logarithmic = low > 0 and high / low > 20
    floor = math.log(low / 2) if logarithmic else 0

    def length(value: float) -> float:
        if logarithmic:
            return LONGEST * (math.log(value) - floor) / (math.log(high) - floor)
        return LONGEST * max(value, 0) / high if high > 0 else 0

    unit = f"{measure.unit}, {'more' if measure.more else 'less'} is better{', log scale' if logarithmic else ''}"
    parts = [
        f'<text x="{left}" y="{top}" class="title">{measure.title}</text>',
        f'<text x="{left}" y="{top + 16}" class="unit">{unit}</text>',
    ]
    for row, one in enumerate(entrants):
        y = top + 26 + row * BAR_HEIGHT
        text, long = one.cell(measure), 0.0
        if one in able:
            long = length(numbers[one.name]) if one.name in numbers else 0
            kind = "ours" if one.name == "ours" else "bar"
            parts.append(f'<rect x="{left + LABEL}" y="{y}" width="{long:.1f}" height="14" rx="2" class="{kind}"/>')
        parts += [
            f'<text x="{left + LABEL - 8}" y="{y + 11}" text-anchor="end">{one.name}</text>',
            f'<text x="{left + LABEL + long + 6:.1f}" y="{y + 11}">{text}</text>',
        ]
    return parts


def drawing(entrants: list[Entrant], workloads: list[str]) -> str:
    drawn = [measure for measure in MEASURES if measure.workload in workloads and measure.drawn]
    tall = 26 + BAR_HEIGHT * len(entrants) + 30
    height = tall * math.ceil(len(drawn) / 2) + 10
    box = f'viewBox="0 0 {2 * PANEL_WIDTH} {height}" role="img" aria-label="The results of the race as bars"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {box}>', f"<style>{STYLE}</style>"]
    for number, measure in enumerate(drawn):
        parts += panel(entrants, measure, 10 + number % 2 * PANEL_WIDTH, 24 + number // 2 * tall)
    return "\n".join([*parts, "</svg>", ""])


def chosen(text: str | None, known: list[str], what: str) -> list[str]:
    names = text.split(",") if text else known
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"race: no {what} {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if name in names]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], metavar="QUEUE=PATH", help="a queue's Python")
    parser.add_argument("--venvs", type=Path, help="a folder with a virtual environment per queue, QUEUE/bin/python")
    parser.add_argument("--only", help="queues, with commas between them")
    parser.add_argument("--workloads", help="workloads, with commas between them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--divide", type=int, default=1, help="by how much there are fewer tasks than in a whole race")
    parser.add_argument("--quick", action="store_true", help="one round with a twentieth of the tasks, no kill")
    parser.add_argument("--url", help="a server to use, which is never flushed; without it, one is started")
    parser.add_argument("--port", type=int, default=0, help="of the server that is started")
    parser.add_argument("--output", type=Path, help="a folder for RESULTS.md and results.svg")
    return parser.parse_args()


def without(name: str, venvs: Path | None) -> str | None:
    """Say why a queue for Node.js cannot take part; None if it can, or if it is one for Python."""
    if not QUEUES[name].endswith(".mjs"):
        return None
    if shutil.which("node") is None:
        return "there is no `node` on this machine"
    if venvs is None or not (venvs / name / "node_modules").is_dir():
        return f"its packages are not installed; `npm install` in a copy of peers/requirements/{name} does so"
    return None


def entered(args: argparse.Namespace, names: list[str]) -> list[Entrant]:
    """Return the queues with their programs, each of which must be able to describe itself."""
    programs = {"ours": sys.executable}
    if args.venvs:
        programs |= {name: str(args.venvs / name / "bin" / "python") for name in names}
    programs |= dict(pair.split("=", 1) for pair in args.python)
    programs |= {name: "node" for name in names if QUEUES[name].endswith(".mjs")}
    if unknown := [name for name in names if name not in programs]:
        raise SystemExit(f"race: no Python for {', '.join(unknown)}; give --python QUEUE=PATH or --venvs FOLDER")
    entrants = [Entrant(name, programs[name], str(args.venvs / name) if args.venvs else "") for name in names]
    for entrant in entrants:
        entrant.about = entrant.run("describe")
        if "error" in entrant.about:
            raise SystemExit(f"race: {entrant.name}: {entrant.about['error']}")
    return entrants


def run_round(number: int, entrants: list[Entrant], tasks: dict[str, int], server: str, *, flush: bool) -> None:
    turn = number % len(entrants)

    def run(entrant: Entrant, workload: str) -> None:
        line = entrant.race(workload, server, f"race-{entrant.name}-{time.time_ns()}", tasks[workload])
        print(f"round {number + 1}  {workload:8} {entrant.name:11} {line}", flush=True)

    for workload in tasks:
        if workload in ONCE and number:
            continue
        able = [one for one in entrants[turn:] + entrants[:turn] if workload not in one.about["unable"]]
        if workload == "kill":
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(run, able, [workload] * len(able)))
            continue
        for entrant in able:
            if flush:
                command(server, "FLUSHALL")
            run(entrant, workload)


def main() -> None:
    args = arguments()
    names = chosen(args.only, list(QUEUES), "queue")
    workloads = chosen(args.workloads, list(TASKS), "workload")
    rounds, divided = args.rounds, args.divide
    if args.quick:
        rounds, divided = 1, 20
        workloads = [workload for workload in workloads if workload != "kill"]
    fixed = {"kill", "startup"}
    tasks = {one: TASKS[one] if one in fixed else max(min(100, TASKS[one]), TASKS[one] // divided) for one in workloads}
    whole = names == list(QUEUES) and tasks == TASKS and rounds >= 5
    output = args.output or (HERE if whole else None)
    circumstances = Circumstances(divided, {name: reason for name in names if (reason := without(name, args.venvs))})
    for name, reason in circumstances.left_out.items():
        print(f"{name} is left out: {reason}", flush=True)
    entrants = entered(args, [name for name in names if name not in circumstances.left_out])
    if not entrants:
        raise SystemExit("race: no queue is left")
    measures = [measure for measure in MEASURES if measure.workload in tasks]
    with contextlib.ExitStack() as stack:
        server = args.url or stack.enter_context(started_server(args.port))
        for number in range(rounds):
            circumstances.note_load()
            run_round(number, entrants, tasks, server, flush=not args.url)
            circumstances.note_load()
            if output:
                output.mkdir(parents=True, exist_ok=True)
                (output / "RESULTS.md").write_text(document(entrants, tasks, number + 1, server, circumstances))
                (output / "results.svg").write_text(drawing(entrants, list(tasks)))
    if not output:
        print("\n".join([*circumstances.sentences(), in_short(entrants, measures), "", *table(entrants, measures)]))


if __name__ == "__main__":
    main()
