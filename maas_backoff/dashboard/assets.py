"""The files of the page: read once, served under a name that changes with their content."""

import hashlib
import html
import json
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_TYPES = {
    "json": "application/json; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


class Assets:
    """The page and the files that it loads."""

    def __init__(self) -> None:
        found = {file.name: file.read_bytes() for file in files("maas_backoff.dashboard").joinpath("static").iterdir()}
        self._pages = {name: found.pop(name).decode() for name in ("index.html", "queues.html")}
        catalogues = [json.loads(found[f"{language}.json"]) for language in ("en", "zh-CN")]
        self._noscript = " ".join(texts["noscript"] for texts in catalogues)
        self._files = {name: content for name, content in found.items() if name.rpartition(".")[2] in _TYPES}
        self.version: str = hashlib.blake2b(b"".join(found[name] for name in sorted(found)), digest_size=6).hexdigest()

    def page(self, file: str = "index.html", **values: str) -> str:
        """Return a page with `{name}` replaced by the value of that name."""
        page = self._pages[file]
        own = {"noscript": self._noscript, "static": f"static/{self.version}"}
        for name, value in {**own, **values}.items():
            page = page.replace(f"{{{name}}}", html.escape(value))
        return page

    async def file(self, request: Request) -> Response:
        """Answer a request for a file."""
        name = request.path_params["name"]
        if name not in self._files or request.path_params["version"] != self.version:
            raise HTTPException(404)
        kept = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(self._files[name], media_type=_TYPES[name.rpartition(".")[2]], headers=kept)
