"""What stands around every request: security headers, a bound on bodies, and who is at the console."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import Request

from .auth import Session

COOKIE = "midflight_session"
body_bytes_max = 256 * 1024
# What carries a list or a campaign's whole content may be longer; such a body is read only once it is known who sends it.
list_bytes_max = 256 * 1024 * 1024
content_bytes_max = 16 * 1024 * 1024
LONGER = {
    "/v1/lists": list_bytes_max,
    "/experiments/new": list_bytes_max + content_bytes_max,
    "/v1/experiments": content_bytes_max,
    "/v1/preview": content_bytes_max,
}


def bytes_max_of(path: str) -> int:
    """Return how long a body may be that is sent to a path."""
    if path.startswith("/v1/experiments/") and path.endswith("/variants"):
        return content_bytes_max
    return LONGER.get(path, body_bytes_max)


POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=()",
    b"x-frame-options": b"DENY",
}


class Shield:
    """Adds the headers to every answer (no-store unless the answer says otherwise) and refuses bodies above the bound."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_shielded(message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", ()))
                names = {name.lower() for name, _ in given}
                extra = [(name, value) for name, value in HEADERS.items() if name not in names]
                if b"cache-control" not in names:
                    extra.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*given, *extra]}
            await send(message)

        bytes_max = bytes_max_of(scope["path"])
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > bytes_max:
            await _too_large(send_shielded)
            return
        taken = 0

        async def receive_bounded():
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > bytes_max:
                # The application sees a client that went away; nothing of an endless body is kept.
                return {"type": "http.disconnect"}
            return message

        await self.app(scope, receive_bounded, send_shielded)


async def _too_large(send) -> None:
    body = b'{"ok":false,"error":{"code":"too_large","what":"The body is too large"},"status":413}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def same_origin(request: Request) -> bool:
    """Return whether a browser sends this from one of our own pages (or a person typed the address)."""
    site = request.headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc == request.headers.get("host", "")
    return request.method in ("GET", "HEAD") or site == "same-origin"


def session_of(request: Request) -> Session | None:
    """Return who is at the console, or None."""
    return request.app.state.site.access.session(request.cookies.get(COOKIE, ""))
