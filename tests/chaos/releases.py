"""The last release, whose producers and workers run beside today's in a mixed run."""

import subprocess
from pathlib import Path

import attrs

import maas_backoff


@attrs.frozen
class Release:
    version: str
    commit: str
    """The commit that gave the release its heading in CHANGELOG.md."""


LAST_RELEASE = Release("0.2.0", "b4a8126b90344b570ef65dcee95cb2a2eef5f480")

CODE = str(Path(maas_backoff.__file__).resolve().parents[1])
"""The folder from which this process has imported the package."""


class ReleaseMissingError(Exception):
    """These files are no clone with the commit of a release."""


def unpack(release: Release, folder: Path) -> str:
    """Put the package of a release into a folder. Return the folder's path as `CODE` shows it."""
    command = ["git", "-C", str(Path(__file__).parents[2]), "archive", "--format=tar", release.commit, "maas_backoff"]
    missing = f"the commit of release {release.version} is not in this clone"
    try:
        archive = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
    except OSError as error:
        raise ReleaseMissingError(f"{missing}: {error}") from error
    except subprocess.CalledProcessError as error:
        raise ReleaseMissingError(f"{missing}: {error.stderr.decode(errors='replace').strip()}") from error
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return str(folder.resolve())
