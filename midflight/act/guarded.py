"""Outgoing HTTP that cannot be made to call inside: the address of every connection is checked at the moment of connecting.

A URL that was checked when it was saved proves nothing: its name may lead elsewhere by now, or between two questions. So the name is
resolved here, every address that it leads to is checked against our own list, and the connection is made to that address; the name stays
what TLS is verified by. Nothing is followed, no proxy of the environment is asked.

The list is written out because Python's ``is_global`` lets NAT64, 6to4 and multicast through (Python 3.11); the networks are those of
https://www.iana.org/assignments/iana-ipv4-special-registry and https://www.iana.org/assignments/iana-ipv6-special-registry.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import contextmanager
from importlib.util import find_spec
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

import httpcore
import httpx

from ..kit.errors import ConfigError

if find_spec("sniffio") is None:
    # httpcore asks for it with every lock, and the search for what is not installed takes longer than a request.
    sys.modules["sniffio"] = None

url_chars_max = 2000
addresses_max = 4  # of one name that are tried
idle_s = 4.0
connect_s = 10.0

# Everything that is not plain unicast on the internet, and what clouds answer to their own machines.
_CLOSED_4 = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
        "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24",
        "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # Azure's metadata and wire server, though a public address
    )
)  # fmt: skip
_OPEN_6 = IPv6Network("2000::/3")
# What is inside of it and is no plain unicast: Teredo and other protocol assignments, documentation, 6to4, AS112.
_CLOSED_6 = tuple(IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"))

Resolve = Callable[[str, int], Awaitable[list[str]]]


class AddressRefused(httpx.ConnectError):
    """A call that must not be made: nothing was connected to."""


def address_problem(text: str) -> str:
    """Return why an address must not be connected to, or ``""``."""
    try:
        address = ip_address(text)
    except ValueError:
        return "no IP address"
    if isinstance(address, IPv6Address):
        closed = address not in _OPEN_6 or address.scope_id is not None or any(address in network for network in _CLOSED_6)
    else:
        closed = any(address in network for network in _CLOSED_4)
    return f"{address} is not on the internet" if closed else ""


_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


def host_problem(host: str) -> str:
    """Return why a host is neither a name nor a plainly written address, or ``""``.

    ``127.1``, ``2130706433``, ``0x7f000001`` and ``0177.0.0.1`` are addresses to the resolver and to nobody who reads them; a name whose
    last part is a number is none (https://url.spec.whatwg.org/#ends-in-a-number-checker).
    """
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        return address_problem(str(ip_address(host)))
    except ValueError:
        pass  # a name, then
    labels = host.removesuffix(".").split(".")
    if not host or len(host) > 253 or not host.isascii() or not all(_LABEL.fullmatch(label) for label in labels):
        return "is no name of a host in ASCII"
    if _NUMBER.fullmatch(labels[-1]):
        return "is an address in disguise"
    if labels[-1].lower() in ("localhost", "local", "internal", "localdomain", "home", "lan", "intranet", "corp"):
        return "is a name of this machine's own network"
    return ""


def url_problem(url: str, *, http: bool = False, ports: frozenset[int] | None = frozenset({443, 80}), allow: Iterable = ()) -> str:
    """Return what is expected of a URL that is not as it must be, or ``""``: for the moment of saving one."""
    if not url.isascii() or len(url) > url_chars_max or any(c <= " " or c in '\\"<>^`{|}\x7f' for c in url):
        return f"printable ASCII without spaces, quotes and backslashes, at most {url_chars_max} characters"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "https://HOST/PATH"
    if parts.scheme not in (("https", "http") if http else ("https",)):
        return "https://" + (" or http://" if http else "")
    if "@" in parts.netloc:
        return "no user or password in the URL"
    port = (443 if parts.scheme == "https" else 80) if port is None else port
    if ports is not None and port not in ports:
        return "port " + ", ".join(map(str, sorted(ports)))
    host = parts.hostname or ""
    if _allowed(host, allow):
        return ""
    problem = host_problem(host)
    return f"a host on the internet (`{host[:100]}` {problem})" if problem else ""


def checked_url(url: str, where: str, **bounds: object) -> str:
    """Return a URL that may be called, or raise ConfigError. What its name leads to is checked again with every connection."""
    if problem := url_problem(url, **bounds):
        raise ConfigError("A URL that may not be called", expected=problem, got=url[:200], where=where)
    return url


def _allowed(address: str, allow: Iterable) -> bool:
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in allow)


async def system_resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name as this machine knows them, in its order of preference."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(info[4][0] for info in found))


class Guard(httpcore.AsyncNetworkBackend):
    """Connects to addresses on the internet alone. ``allow`` are networks that may be connected to all the same: for tests, or a service
    of one's own. ``ports`` None allows all.
    """

    def __init__(
        self,
        *,
        allow: Iterable[str] = (),
        ports: frozenset[int] | None = frozenset({443}),
        http: bool = False,
        resolve: Resolve = system_resolve,
        inner: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self.allow = tuple(ip_network(network) for network in allow)
        self.ports = ports
        self.http = http
        self._resolve = resolve
        self._inner = inner or httpcore.AnyIOBackend()

    def check(self, url: str) -> None:
        """Raise AddressRefused for a URL that need not even be resolved."""
        if problem := url_problem(url, http=self.http, ports=self.ports, allow=self.allow):
            raise AddressRefused(f"expected {problem}")

    async def addresses(self, host: str, port: int) -> list[str]:
        """Return where a host leads to. Raises AddressRefused where any of it is inside: a name that leads to both is a trap."""
        try:
            found = [str(ip_address(host.strip("[]")))]
        except ValueError:
            if problem := host_problem(host):
                raise AddressRefused(f"{host[:100]} {problem}") from None
            try:
                found = await self._resolve(host, port)
            except (OSError, UnicodeError) as error:
                raise httpx.ConnectError(f"{host[:100]} is not known: {error}") from None
        if not found:
            raise httpx.ConnectError(f"{host[:100]} leads nowhere")
        for address in found:
            if not _allowed(address, self.allow) and (problem := address_problem(address)):
                raise AddressRefused(f"{host[:100]}: {problem}")
        return found[:addresses_max]

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):  # noqa: ASYNC109
        if self.ports is not None and port not in self.ports:
            raise AddressRefused(f"port {port} may not be connected to")
        try:
            async with asyncio.timeout(timeout if timeout is not None else connect_s):
                # The address is the one that was checked: nothing is resolved a second time.
                last: Exception = httpx.ConnectError(f"{host} leads nowhere")
                for address in await self.addresses(host, port):
                    try:
                        stream = await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
                    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                        last = error
                        continue
                    await self._same(stream, address)
                    return stream
                raise last
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"no connection to {host} in time") from None

    async def _same(self, stream: httpcore.AsyncNetworkStream, address: str) -> None:
        """Raise where a connection came to stand elsewhere than it was asked to."""
        peer = stream.get_extra_info("server_addr")
        if not peer or ip_address(peer[0].partition("%")[0]) != ip_address(address):
            await stream.aclose()
            raise AddressRefused(f"the connection to {address} stands elsewhere")

    async def connect_unix_socket(self, path, timeout=None, socket_options=None):  # noqa: ASYNC109
        raise AddressRefused("a socket of this machine")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


@contextmanager
def _as_httpx():
    """Raise httpcore's errors as httpx's, which have the same names."""
    try:
        yield
    except (
        httpcore.TimeoutException,
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.UnsupportedProtocol,
    ) as e:
        raise getattr(httpx, type(e).__name__)(str(e)) from e


class _Body(httpx.AsyncByteStream):
    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx():
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


class GuardedTransport(httpx.AsyncBaseTransport):
    """httpx's way to a network of which a `Guard` is the only door."""

    def __init__(self, guard: Guard, *, connections: int, verify: ssl.SSLContext | bool = True) -> None:
        context = verify if isinstance(verify, ssl.SSLContext) else httpx.create_ssl_context(verify=verify, trust_env=False)
        self.guard = guard
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context, max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=idle_s,
            network_backend=guard,
        )  # fmt: skip

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.guard.check(str(request.url))
        url = httpcore.URL(scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path)
        asked = httpcore.Request(request.method, url, headers=request.headers.raw, content=request.stream, extensions=request.extensions)
        with _as_httpx():
            answer = await self._pool.handle_async_request(asked)
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer.stream), extensions=answer.extensions)

    async def aclose(self) -> None:
        await self._pool.aclose()


def client(guard: Guard, *, connections: int, answer_s: float, verify: ssl.SSLContext | bool = True) -> httpx.AsyncClient:
    """Return a client all of whose connections go through the guard. Redirects, proxies and ``.netrc`` are not looked at."""
    return httpx.AsyncClient(
        transport=GuardedTransport(guard, connections=connections, verify=verify), timeout=httpx.Timeout(answer_s, connect=connect_s),
        follow_redirects=False, trust_env=False,
    )  # fmt: skip
