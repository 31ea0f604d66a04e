"""The service of docs/streams.md under real uvicorn: clients that lose their connection, and clients that hang up."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import TESTS, Served, events_of
from support import Server

pytestmark = pytest.mark.timeout(120)

PAGE = (TESTS.parent / "maas_backoff/docs/streams.md").read_text(encoding="utf-8")
SERVICE = next(one for one in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if "FastAPI" in one)


@pytest.fixture
def served(tmp_path: Path, server: Server) -> Iterator[Served]:
    (tmp_path / "chat_service.py").write_text(SERVICE, encoding="utf-8")
    env = {"MAAS_BACKOFF_URL": f"redis://127.0.0.1:{server.port}", "PYTHONPATH": f"{tmp_path}:{TESTS}"}
    service = Served("chat_service:app", env, tmp_path / "uvicorn.log")
    yield service.answering("/docs")
    service.end()


def test_a_client_that_loses_its_connection_goes_on_after_its_last_event(served: Served) -> None:
    words = [f"word{n}" for n in range(40)]
    task_id = served.client.post("/chat", json={"prompt": " ".join(words), "pause": 0.03}).json()["task_id"]
    seen: list[dict[str, str]] = []
    connections = 0
    while not seen or seen[-1]["event"] != "end":
        connections += 1
        last = seen[-1]["id"] if seen else None
        with served.opened(f"/chat/{task_id}/stream", last) as events:
            for event in events:
                seen.append(event)
                if len(seen) % 7 == 0:
                    break
    assert connections > 3
    text = "".join(json.loads(event["data"]) for event in seen[:-1])
    assert text == "".join(f"{word.upper()}\n" for word in words)
    assert seen[-1] == {"event": "end", "data": "completed"}
    with served.opened(f"/chat/{task_id}/stream", seen[-2]["id"]) as events:
        assert list(events) == [{"event": "end", "data": "completed"}]


def test_what_no_stream_has_is_refused_with_a_status(served: Served) -> None:
    assert served.client.get("/chat/none/stream").status_code == 404
    task_id = served.client.post("/chat", json={"prompt": "a cat"}).json()["task_id"]
    answer = served.client.get(f"/chat/{task_id}/stream", headers={"Last-Event-ID": "nonsense"})
    assert answer.status_code == 422 and "the id of a part" in answer.json()["detail"]


def test_a_task_ends_with_a_client_that_hangs_up(served: Served, server: Server) -> None:
    body = {"prompt": " ".join(["word"] * 1000), "pause": 0.05}
    with served.client.stream("POST", "/chat/now", json=body) as response:
        assert next(events_of(response.iter_lines()))["event"] == "part"
    served.until(lambda: server.client.zcard("maas:{test}:cancelled"), "its task is cancelled")
