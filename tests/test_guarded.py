"""Outgoing HTTP cannot be made to call inside: whatever a URL, a resolver or a server says, nothing that listens here is connected to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator

import httpx
import pytest
import trustme

from midflight.act import guarded
from midflight.act.guarded import AddressRefused, Guard, address_problem, checked_url, client, host_problem, url_problem
from midflight.kit.errors import ConfigError

# reference: what each of these is to somebody's resolver is loopback, this network, a link-local address or a cloud's metadata.
FORBIDDEN = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "169.254.169.254",
    "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1",
    "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "100::1", "2001::1", "2001:0:7f00:1::", "2001:10::1", "2001:20::1", "2001:db8::1",
    "2002:7f00:1::", "2002:a00:1::", "3fff::1", "5f00::1", "fc00::1", "fd00::8", "fd00:ec2::254", "fe80::1", "fe80::1%1", "fec0::1",
    "ff02::1", "ff0e::1",
]  # fmt: skip
ALLOWED = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_an_address_inside_is_refused(address: str) -> None:
    """Every network that is not the open internet is on the list, also where Python's own `is_global` says otherwise."""
    assert address_problem(address)


@pytest.mark.parametrize("address", ALLOWED)
def test_an_address_outside_is_not(address: str) -> None:
    """Control: plain addresses on the internet may be connected to, next to the borders of closed networks as well."""
    assert not address_problem(address)


HOSTS = [
    "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0X7F.0.0.1", "0177.0.0.1", "0", "0x0", "017700000001", "127.0.0.1.",
    "1.2.3", "①②⑦.0.0.1", "127。0。0。1", "localhost", "LOCALHOST", "db.localhost", "printer.local", "metadata.google.internal", "a b",
    "", "-a.example", "a..example", "[::1]", "[::ffff:127.0.0.1]", "x" * 64 + ".example", ("a" * 60 + ".") * 5 + "example",
    "exa\x00mple.com", "foo.0x1",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_in_disguise_is_refused(host: str) -> None:
    """Addresses as numbers, in octal, hexadecimal or other digits, names of this network, and what is no name at all."""
    assert host_problem(host)


@pytest.mark.parametrize(
    "host", ["example.com", "a.b-c.example.co.uk", "xn--bcher-kva.example", "hooks.slack.com", "8.8.8.8", "x1.example."]
)
def test_an_ordinary_host_is_not(host: str) -> None:
    """Control: names and plainly written addresses on the internet are."""
    assert not host_problem(host)


URLS = [
    "http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "javascript:alert(1)", "//example.com/",
    "https://user@example.com/", "https://user:pass@example.com/", "https://example.com@127.0.0.1/", "https://127.0.0.1/",
    "https://127.0.0.1#@example.com/", "https://127.0.0.1?@example.com/", "https://example.com:22/", "https://example.com:6379/",
    "https://example.com:0/", "https://example.com:99999/", "https://example.com:x/", "https://[::1]/", "https://[::ffff:127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://[fe80::1%25eth0]/", "https://2130706433/", "https://0x7f000001/",
    "https://127.1/", "https://①②⑦.0.0.1/", "https://localhost/", "https://exa mple.com/", "https://example.com/\r\nX: y",
    "https://example.com/\t", "https:\\\\127.0.0.1\\", "https://example.com\\@127.0.0.1/", "https://127.0.0.1%2f@example.com/",
    "https://", "https:///x", "", "example.com", "https://[::1", "https://169.254.169.254/latest/meta-data/", "https://" + "a" * 2000,
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_a_url_that_may_not_be_called_is_not_saved(url: str) -> None:
    """Other schemes, users, ports and hosts, line breaks and disguises are refused with what was expected, before anything is resolved."""
    assert url_problem(url)
    with pytest.raises(ConfigError, match="expected"):
        checked_url(url, "url")


def test_an_ordinary_url_is_saved() -> None:
    """Control: what people configure passes; http and other ports where a setting says so."""
    assert checked_url("https://hooks.slack.com/services/T0/B0/x?y=1", "url")
    assert url_problem("http://example.com/") and not url_problem("http://example.com/", http=True)
    assert url_problem("https://example.com:8443/") and not url_problem("https://example.com:8443/", ports=frozenset({8443}))


# -- sockets that count ------------------------------------------------------------------------------------------------------------


class Listening:
    """A socket on loopback, in a thread, that counts connections and answers each with a fixed answer."""

    def __init__(
        self, answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok", host: str = "127.0.0.1"
    ) -> None:
        self.answer, self.connections = answer, 0
        self.socket = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                self.connections += 1
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(5)
                    connection.recv(65536)
                    connection.sendall(self.answer)

    def __enter__(self) -> Listening:
        self.thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        # A blocked accept ends with shutdown, not with close.
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join(10)


@pytest.fixture(scope="module")
def canary() -> Iterator[Listening]:
    with Listening() as listening:
        yield listening


def ask(url: str, guard: Guard, **more: object) -> httpx.Response:
    async def asking() -> httpx.Response:
        async with client(guard, connections=1, answer_s=20, **more) as asked:
            return await asked.post(url, content=b"x")

    return asyncio.run(asking())


# What this machine itself connects to loopback for: each is tried without the guard first.
DISGUISED = ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "0.0.0.0", "localhost", "[::ffff:127.0.0.1]"]


@pytest.mark.parametrize("host", DISGUISED)
def test_no_connection_is_made_inside(host: str, canary: Listening) -> None:
    """Without the guard the host leads to what listens here; with it no connection is made, neither by URL nor by the host as it stands."""
    before = canary.connections
    with socket.create_connection((host.strip("[]"), canary.port), timeout=20) as control:
        control.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert control.recv(100).startswith(b"HTTP/1.1 200") and canary.connections == before + 1
    with pytest.raises((AddressRefused, httpx.InvalidURL)):
        ask(f"http://{host}:{canary.port}/", Guard(ports=None, http=True))
    with pytest.raises(AddressRefused):
        asyncio.run(Guard(ports=None, http=True).connect_tcp(host.strip("[]"), canary.port))
    assert canary.connections == before + 1


@pytest.mark.parametrize(
    "host", ["[::]", "[::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::127.0.0.1]", "①②⑦.0.0.1", "a@127.0.0.1", "a:b@127.1"]
)
def test_no_connection_is_made_inside_by_others(host: str, canary: Listening) -> None:
    """Nor by forms that this machine's own resolver does not take."""
    before = canary.connections
    with pytest.raises((AddressRefused, httpx.InvalidURL)):
        ask(f"http://{host}:{canary.port}/", Guard(ports=None, http=True))
    assert canary.connections == before


REFERENCE = [
    "http://2130706433:{}/", "http://0x7f000001:{}/", "http://127.1:{}/", "http://①②⑦.0.0.1:{}/", "http://[::ffff:127.0.0.1]:{}/",
    "http://[64:ff9b::7f00:1]:{}/", "http://[2002:7f00:1::]:{}/", "http://a@127.0.0.1:{}/", "http://0177.0.0.1:{}/", "http://0:{}/",
    "file://127.0.0.1:{}/etc/passwd", "gopher://127.0.0.1:{}/", "http://127.0.0.1:{}/\r\nX: y", "http://example.com:{}@127.0.0.1:{}/",
]  # fmt: skip


@pytest.mark.parametrize("vector", REFERENCE)
def test_what_is_known_to_lead_inside_does_not(vector: str, canary: Listening) -> None:
    """Forms that have led others inside: refused when they are saved, and no connection is made when they are called all the same."""
    url, before = vector.replace("{}", str(canary.port)), canary.connections
    assert url_problem(url, http=True, ports=None)
    with pytest.raises((AddressRefused, httpx.InvalidURL, httpx.UnsupportedProtocol)):
        ask(url, Guard(ports=None, http=True))
    assert canary.connections == before


def resolver(*answers: list[str]):
    """Return a resolver that says one thing after the other, as a server of somebody's own would."""
    left = list(answers)
    asked = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return left.pop(0) if len(left) > 1 else left[0]

    resolve.asked = asked
    return resolve


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0"])
def test_a_name_that_leads_inside_is_refused_at_connect_time(address: str, canary: Listening) -> None:
    """The URL is an ordinary one; what its name resolves to when the connection is made decides."""
    before = canary.connections
    with pytest.raises(AddressRefused):
        ask(f"http://hook.example:{canary.port}/", Guard(ports=None, http=True, resolve=resolver([address])))
    with pytest.raises(AddressRefused):
        ask(f"http://hook.example:{canary.port}/", Guard(ports=None, http=True, resolve=resolver(["93.184.216.34", address])))
    assert canary.connections == before


def test_a_name_that_changes_between_check_and_connect_gains_nothing(canary: Listening) -> None:
    """The connection goes to the address that was checked: the name is resolved once, so that a second answer is never heard."""
    reached = []

    class Recording(guarded.httpcore.AnyIOBackend):
        async def connect_tcp(self, host, port, *given, **more):
            reached.append(host)
            raise guarded.httpcore.ConnectError("no way out from here")

    resolve = resolver(["93.184.216.34"], ["127.0.0.1"])
    before = canary.connections
    guard = Guard(ports=None, http=True, resolve=resolve, inner=Recording())
    with pytest.raises(httpx.ConnectError):
        ask(f"http://hook.example:{canary.port}/", guard)
    assert reached == ["93.184.216.34"] and resolve.asked == ["hook.example"] and canary.connections == before


def test_a_guard_that_resolves_twice_is_caught(canary: Listening) -> None:
    """Control: were the name handed on after the check, the second answer would lead inside."""
    resolve = resolver(["93.184.216.34"], ["127.0.0.1"])

    class Twice(Guard):
        async def connect_tcp(self, host, port, *given, **more):
            await self.addresses(host, port)
            (address,) = await resolve(host, port)
            return await self._inner.connect_tcp(address, port, *given, **more)

    before = canary.connections
    assert ask(f"http://hook.example:{canary.port}/", Twice(ports=None, http=True, resolve=resolve)).status_code == 200
    assert canary.connections == before + 1


def test_a_connection_that_stands_elsewhere_is_given_up(canary: Listening) -> None:
    """Where a connection was made to another address than was asked for, nothing is written to it."""

    class Astray(guarded.httpcore.AnyIOBackend):
        async def connect_tcp(self, host, port, *given, **more):
            return await super().connect_tcp("127.0.0.1", port, *given, **more)

    with pytest.raises(AddressRefused, match="elsewhere"):
        ask(f"http://hook.example:{canary.port}/", Guard(ports=None, http=True, resolve=resolver(["93.184.216.34"]), inner=Astray()))


def test_an_address_that_is_allowed_is_connected_to(canary: Listening) -> None:
    """Control: with the network allowed by a setting, the same guard connects."""
    before = canary.connections
    assert ask(f"http://127.0.0.1:{canary.port}/", Guard(allow=["127.0.0.0/8"], ports=None, http=True)).status_code == 200
    guard = Guard(allow=["127.0.0.0/8"], ports=None, http=True, resolve=resolver(["127.0.0.1"]))
    assert ask(f"http://hook.example:{canary.port}/", guard).status_code == 200
    assert canary.connections == before + 2
    # But only that network.
    with pytest.raises(AddressRefused):
        ask(f"http://0.0.0.0:{canary.port}/", guard)


def test_ports_are_limited(canary: Listening) -> None:
    """A port that is not among those allowed is not connected to, whatever the address."""
    before = canary.connections
    with pytest.raises(AddressRefused, match="port"):
        ask(f"http://127.0.0.1:{canary.port}/", Guard(allow=["127.0.0.0/8"], http=True))
    guard = Guard(allow=["127.0.0.0/8"], http=True)
    with pytest.raises(AddressRefused, match="port"):
        asyncio.run(guard.connect_tcp("127.0.0.1", canary.port))
    assert canary.connections == before


def test_redirects_are_not_followed(canary: Listening) -> None:
    """A service that is allowed and sends us elsewhere is heard and not obeyed."""
    away = b"HTTP/1.1 307 Away\r\nlocation: http://127.0.0.1:%d/inside\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % canary.port
    before = canary.connections
    with Listening(away) as listening:
        answer = ask(f"http://127.0.0.1:{listening.port}/", Guard(allow=["127.0.0.0/8"], ports=None, http=True))
    assert answer.status_code == 307 and canary.connections == before


def test_proxies_of_the_environment_are_not_asked(canary: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment would resolve names by itself; none is used. An ordinary client uses it: that is the control."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
    before = canary.connections
    with Listening() as listening:
        assert ask(f"http://127.0.0.1:{listening.port}/", Guard(allow=["127.0.0.0/8"], ports=None, http=True)).status_code == 200
        assert canary.connections == before and listening.connections == 1
        assert httpx.post(f"http://127.0.0.1:{listening.port}/", timeout=20).status_code == 200
    assert canary.connections == before + 1


def test_sockets_of_this_machine_are_closed() -> None:
    """No socket in the file system is connected to."""
    with pytest.raises(AddressRefused):
        asyncio.run(Guard().connect_unix_socket("/run/docker.sock"))


def test_tls_is_verified_by_name() -> None:
    """The address is pinned, the certificate is still checked against the name: another name's fails, the right one does not."""
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    guard = Guard(allow=["127.0.0.0/8"], ports=None, resolve=resolver(["127.0.0.1"]))

    async def asking(name: str, verify: ssl.SSLContext | bool) -> int:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("hook.example").configure_cert(tls)

        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(65536)
            writer.write(b"HTTP/1.1 204 No\r\nconnection: close\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(served, "127.0.0.1", 0, ssl=tls)
        async with server, client(guard, connections=1, answer_s=20, verify=verify) as asked:
            return (await asked.get(f"https://{name}:{server.sockets[0].getsockname()[1]}/")).status_code

    assert asyncio.run(asking("hook.example", context)) == 204
    with pytest.raises(httpx.ConnectError):
        asyncio.run(asking("other.example", context))
    with pytest.raises(httpx.ConnectError):
        asyncio.run(asking("hook.example", True))


def test_errors_are_those_of_the_client() -> None:
    """What the pool underneath raises arrives under httpx's names, which deliveries tell apart."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    guard = Guard(allow=["127.0.0.0/8"], ports=None, http=True)
    with pytest.raises(httpx.ConnectError):
        ask(f"http://127.0.0.1:{closed}/", guard)
    with Listening(b"nonsense\r\n\r\n") as listening, pytest.raises(httpx.RemoteProtocolError):
        ask(f"http://127.0.0.1:{listening.port}/", guard)
    with Listening(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok") as listening, pytest.raises(httpx.RemoteProtocolError):
        ask(f"http://127.0.0.1:{listening.port}/", guard)
    with pytest.raises(httpx.ConnectError, match="not known"):
        ask("http://nowhere.invalid/", Guard(ports=None, http=True, resolve=_failing))


async def _failing(host: str, port: int) -> list[str]:
    raise OSError("no such name")
