"""The code of the last release comes from its commit; where the commit is missing, the reason is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from chaos.releases import CODE, LAST_RELEASE, Release, ReleaseMissingError, unpack


def test_the_last_release_is_the_newest_of_its_own_changelog() -> None:
    changelog = ["git", "show", f"{LAST_RELEASE.commit}:CHANGELOG.md"]
    try:
        shown = subprocess.run(changelog, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the commit of release {LAST_RELEASE.version} is not in this clone: {error}")
    versions = [line.split()[1] for line in shown.splitlines() if line.startswith("## ") and line != "## Unreleased"]
    assert versions[0] == LAST_RELEASE.version


def test_a_process_runs_the_code_of_the_release_that_comes_first_on_its_path(tmp_path: Path) -> None:
    try:
        old = unpack(LAST_RELEASE, tmp_path)
    except ReleaseMissingError as error:
        pytest.skip(str(error))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([old, str(Path(__file__).parents[1])])}
    command = [sys.executable, "-P", "-c", "from chaos.releases import CODE; print(CODE)"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == old != CODE


def test_a_clone_without_the_commit_says_so(tmp_path: Path) -> None:
    with pytest.raises(ReleaseMissingError, match=r"the commit of release 0\.0\.0 is not in this clone: \S"):
        unpack(Release("0.0.0", "0" * 40), tmp_path)
