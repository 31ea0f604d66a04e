"""The server to ask, by a URL or by fields; options that exclude each other are told before anything is sent."""

from pathlib import Path

import pytest
from support import quick_config

from maas_backoff import ConfigError, StorageConfig, TaskBackoffConfig, TaskBackoffScheduler
from maas_backoff.config.endpoint import Endpoint


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("redis://h", Endpoint(nodes=(("h", 6379),))),
        ("valkey://h:1/2", Endpoint(nodes=(("h", 1),), database=2)),
        ("redis://h:1?db=3", Endpoint(nodes=(("h", 1),), database=3)),
        ("rediss://u:p%40%2F@h:1", Endpoint(nodes=(("h", 1),), username="u", password="p@/", tls=True)),
        ("redis://:pw@[::1]:1", Endpoint(nodes=(("::1", 1),), password="pw")),
        ("unix:///run/my%20redis.sock?db=4", Endpoint(path="/run/my redis.sock", database=4)),
        (
            "redis+sentinel://:pw@a:1,b/mine/5?sentinel_username=su&sentinel_password=sp",
            Endpoint(
                type="sentinel",
                nodes=(("a", 1), ("b", 26379)),
                master="mine",
                database=5,
                password="pw",
                sentinel_username="su",
                sentinel_password="sp",
            ),
        ),
        ("valkeys+cluster://a:1,b:2", Endpoint(type="cluster", nodes=(("a", 1), ("b", 2)), tls=True)),
    ],
)
def test_a_url_says_whom_to_ask(url: str, endpoint: Endpoint) -> None:
    assert StorageConfig(url=url).endpoint == endpoint


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "redis://",
        "redis://h:port",
        "redis://h:0",
        "redis://h:65536",
        "redis://a,b",
        "redis://h/one",
        "redis://h/1/2",
        "redis://h?ssl_cert_reqs=none",
        "redis://h#1",
        "redis://[x",
        "unix://host/path",
        "unix://",
        "redis+sentinel://a,b",
        "redis+mystery://a",
        "redis+cluster://",
        5,
    ],
)
def test_a_wrong_url_is_refused_without_being_repeated(url: object) -> None:
    with pytest.raises(ConfigError) as caught:
        StorageConfig(url=url.replace("//", "//:hunter2@", 1) if isinstance(url, str) else url)
    assert caught.value.option == "storage.url"
    assert "hunter2" not in str(caught.value)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("storage", "option"),
    [
        (StorageConfig(type="sentinel", master="m"), "storage.nodes"),
        (StorageConfig(type="sentinel", nodes=("a:1",)), "storage.master"),
        (StorageConfig(type="cluster"), "storage.nodes"),
        (StorageConfig(type="cluster", nodes=("a:1",), database=1), "storage.database"),
        (StorageConfig(url="redis+cluster://a/1"), "storage.database"),
    ],
)
async def test_fields_that_do_not_go_together_are_refused_before_anything_is_sent(
    storage: StorageConfig, option: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        await TaskBackoffScheduler(quick_config(storage)).create_task({})
    assert caught.value.option == option


def test_fields_say_the_same_as_a_url() -> None:
    fields = StorageConfig(type="sentinel", nodes=["a:1", "b"], master="mine", password="pw", database=5)
    assert fields.endpoint == StorageConfig(url="redis+sentinel://:pw@a:1,b/mine/5").endpoint
    assert StorageConfig(type="cluster", nodes="a:1,b").nodes == ("a:1", "b")


def test_no_secret_is_shown() -> None:
    storage = StorageConfig(
        password="hunter2", sentinel_password="hunter2", url="redis+sentinel://:hunter2@a/m?sentinel_password=hunter2"
    )
    assert "hunter2" not in repr(storage) + repr(storage.endpoint)


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands it in an .env file, a unit or compose: workers that start elsewhere would have another queue."""
    monkeypatch.setenv("HOME", "/home/somebody")
    for option in ("path", "tls_ca", "tls_cert", "tls_key"):
        for given in ("~/data", Path("~/data")):
            config = StorageConfig(**{option: given})  # type: ignore[arg-type] - by name
            assert getattr(config, option) == "/home/somebody/data"
        setattr(config, option, "~")
        assert getattr(config, option) == "/home/somebody"
        setattr(config, option, "./~/data")
        assert getattr(config, option) == "./~/data"
        with pytest.raises(ConfigError, match=rf"storage.{option}: expected a path whose '~' is a home directory"):
            setattr(config, option, "~nobody-of-this-name/data")
    environ = {"MAAS_BACKOFF_TYPE": "embedded", "MAAS_BACKOFF_PATH": "~/data"}
    assert TaskBackoffConfig.from_env(environ=environ).storage.path == "/home/somebody/data"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("unix://~/run/x.sock?db=3", "/home/somebody/run/x.sock"),
        ("unix:///~/run/x.sock", "/home/somebody/run/x.sock"),
        ("unix:~/run/x.sock", "/home/somebody/run/x.sock"),
        ("unix://user:word@~/run/x.sock", "/home/somebody/run/x.sock"),
        ("unix:///run/~x.sock", "/run/~x.sock"),
    ],
)
def test_a_tilde_in_the_path_of_a_socket_is_the_home_directory(
    url: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert StorageConfig(url=url).endpoint.path == path


def test_a_tilde_in_the_path_of_a_socket_that_is_nobodys_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"storage.url: expected a path whose '~' is a home directory"):
        StorageConfig(url="unix://~nobody-of-this-name/x.sock")
