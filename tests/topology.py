"""Rigs of several servers on loopback ports: a master with replicas and Sentinels, a Cluster; also with TLS."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry
from support import server_binary

KINDS = ("valkey-9.1", "redis-7.0")
MASTER = "mine"

_COMMON = {"bind": "127.0.0.1", "protected-mode": "no", "loglevel": "notice"}
_VOLATILE = {"save": '""', "appendonly": "no", "repl-diskless-sync-delay": 0, "repl-ping-replica-period": 1}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_until(holds: Callable[[], Any], what: str, seconds: float = 30) -> None:
    """Wait until `holds()` is true; a server that does not answer yet is no answer."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.RedisError):
            if holds():
                return
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


class Authority:
    """An authority for certificates of 127.0.0.1, made by the openssl command."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl command on this machine")
        folder.mkdir(parents=True)
        self._folder = folder
        self.ca = folder / "ca.crt"
        self._openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test-authority "
            "-addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.crt"
        )
        self.cert, self.key = self.issue("server")

    def issue(self, name: str, alternative: str = "IP:127.0.0.1,DNS:localhost") -> tuple[Path, Path]:
        """Return the files of a new certificate and its key."""
        extensions = f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
        (self._folder / f"{name}.ext").write_text(extensions, encoding="ascii")
        self._openssl(
            f"req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} "
            f"-keyout {name}.key -out {name}.csr"
        )
        self._openssl(
            f"x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile {name}.ext "
            f"-out {name}.crt"
        )
        return self._folder / f"{name}.crt", self._folder / f"{name}.key"

    def _openssl(self, words: str) -> None:
        subprocess.run(["openssl", *words.split()], cwd=self._folder, check=True, capture_output=True, timeout=20)


class Node:
    """One server process, started from a file of its own: a data server, or a Sentinel."""

    def __init__(
        self,
        kind: str,
        folder: Path,
        lines: str = "",
        *,
        sentinel: bool = False,
        tls: Authority | None = None,
        verify_host: bool = True,
    ) -> None:
        """`lines` are those of its configuration. Skips the test where there is no such server, or none with TLS."""
        binary = server_binary(kind)
        if binary is None:
            pytest.skip(f"no {kind} server on this machine")
        self.port = free_port()
        self._folder = folder / str(self.port)
        self._folder.mkdir(parents=True)
        config = {**_COMMON, **({} if sentinel else _VOLATILE), "port": self.port, "dir": self._folder}
        security: dict[str, Any] = {}
        if tls is not None:
            config |= {"port": 0, "tls-port": self.port, "tls-replication": "yes"}
            config |= {"tls-ca-cert-file": tls.ca, "tls-cert-file": tls.cert, "tls-key-file": tls.key}
            config |= {"tls-auth-clients": "optional"}
            security = {"ssl": True, "ssl_ca_certs": str(tls.ca), "ssl_check_hostname": verify_host}
        text = "".join(f"{name} {value}\n" for name, value in config.items())
        file = self._folder / "server.conf"
        file.write_text(text + lines, encoding="ascii")
        self._log = self._folder / "log"
        self._command = [binary, str(file), *(["--sentinel"] if sentinel else [])]
        self.client = redis.Redis(
            port=self.port, protocol=3, retry=Retry(NoBackoff(), 2), socket_timeout=10, **security
        )
        self.start()

    def __str__(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self, *command: str | bytes | int) -> Any:
        """Send a command; the answer as the server gave it."""
        return self.client.execute_command(*command)

    def info(self, section: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.info(section)
        return found

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                self.ask("PING")
                return
            except (redis.ConnectionError, redis.TimeoutError):
                if self.process.poll() is not None and "TLS" in self._log.read_text():
                    pytest.skip(f"this server has no TLS: {self._command[0]}")
                assert self.process.poll() is None and time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.02)
            except redis.ResponseError:
                return  # NOAUTH, LOADING: it answers

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.client.close()
        self.kill()


class Rig:
    """Nodes that are stopped together; a context manager."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.stop()

    def _add(self, *args: Any, **options: Any) -> Node:
        self.nodes.append(Node(*args, **options))
        return self.nodes[-1]


class SentinelRig(Rig):
    """A master, its replicas, and three Sentinels that watch them as `mine`."""

    def __init__(
        self, kind: str, folder: Path, lines: str = "", *, replicas: int = 1, tls: Authority | None = None
    ) -> None:
        """`lines` are more of the configuration of the data servers."""
        super().__init__()
        try:
            self.master = self._add(kind, folder, lines, tls=tls)
            follows = f"replicaof 127.0.0.1 {self.master.port}\n"
            self.replicas = [self._add(kind, folder, lines + follows, tls=tls) for _ in range(replicas)]
            watch = (
                f"sentinel monitor {MASTER} 127.0.0.1 {self.master.port} 2\n"
                f"sentinel down-after-milliseconds {MASTER} 1000\nsentinel failover-timeout {MASTER} 10000\n"
            )
            self.sentinels = [self._add(kind, folder, watch, sentinel=True, tls=tls) for _ in range(3)]
            wait_until(
                lambda: all(map(self._knows_all, self.sentinels)), "the Sentinels know each other and the replica"
            )
            for one in self.replicas:
                wait_until(lambda r=one: r.info("replication")["master_link_status"] == "up", "it follows")
        except BaseException:
            self.__exit__()
            raise

    def _knows_all(self, sentinel: Node) -> bool:
        known = sentinel.ask("SENTINEL", "MASTER", MASTER)
        counts = int(known[b"num-other-sentinels"]), int(known[b"num-slaves"])
        return counts == (2, len(self.replicas)) and known[b"flags"] == b"master"

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(map(str, self.sentinels))

    def named(self) -> Node:
        """Return the master by the first Sentinel."""
        port = int(self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)[1])
        return next(node for node in self.nodes if node.port == port)


class ClusterRig(Rig):
    """Three masters with a third of the slots each, and a replica for each of them."""

    def __init__(self, kind: str, folder: Path, lines: str = "", *, tls: Authority | None = None) -> None:
        super().__init__()
        try:
            for _ in range(6):
                bus = free_port()
                options = f"cluster-enabled yes\ncluster-port {bus}\ncluster-node-timeout 2000\n"
                secure = "tls-cluster yes\n" if tls else ""
                node = self._add(kind, folder, lines + options + secure, tls=tls)
                if len(self.nodes) > 1:
                    node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, self._bus)
                else:
                    self._bus = bus
            self.masters, self.replicas = self.nodes[:3], self.nodes[3:]
            for master, (first, last) in zip(self.masters, ((0, 5460), (5461, 10922), (10923, 16383)), strict=True):
                master.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
            for replica, master in zip(self.replicas, self.masters, strict=True):
                wanted = self.id(master)
                wait_until(lambda r=replica, w=wanted: w in r.ask("CLUSTER", "NODES").decode(), "the nodes have met")
                wait_until(lambda r=replica, w=wanted: r.ask("CLUSTER", "REPLICATE", w), "it replicates")
            wait_until(lambda: all(map(self._well, self.nodes)), "the Cluster is well")
        except BaseException:
            self.__exit__()
            raise

    @staticmethod
    def id(node: Node) -> str:
        found: str = node.ask("CLUSTER", "MYID").decode()
        return found

    @staticmethod
    def _well(node: Node) -> bool:
        well = b"cluster_state:ok" in node.ask("CLUSTER", "INFO") and len(node.ask("CLUSTER", "SLOTS")) == 3
        well = well and all(len(row) == 4 for row in node.ask("CLUSTER", "SLOTS"))  # each has a replica
        state = node.info("replication")
        return well and (state["role"] == "master" or state["master_link_status"] == "up")

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(map(str, self.nodes))

    @staticmethod
    def slot(biz_prefix: str) -> int:
        return key_slot(f"maas:{{{biz_prefix}}}:".encode())

    def owner(self, biz_prefix: str) -> Node:
        """Return the master that holds a queue, by what the nodes that live say."""
        alive = next(node for node in self.nodes if node.process.poll() is None)
        slot = self.slot(biz_prefix)
        row = next(row for row in alive.ask("CLUSTER", "SLOTS") if row[0] <= slot <= row[1])
        return next(node for node in self.nodes if node.port == row[2][1])

    def replica_of(self, master: Node) -> Node:
        return self.replicas[self.masters.index(master)]
