"""The page and what it asks for: state, a run's curve, changes as server-sent events, metrics, an operator's commands."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.bus import BusError
from services.devices import LEVEL
from services.monitor import commands, metrics
from services.monitor.core.curve import STAGES
from services.monitor.core.watched import Watched

log = structlog.get_logger()

STATIC: Final = Path(__file__).parent / "static"
FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/uplot.js": ("uplot/uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    "/uplot.css": ("uplot/uPlot.min.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
LISTENERS: Final = 64
"""Pages that listen at once."""
PAUSE_S: Final = 0.25
"""Between two looks for what changed."""
QUIET_S: Final = 15.0
"""After which a comment keeps the connection alive."""
BODY_BYTES: Final = 16 << 10
LEAST_TOKEN: Final = 16


@dataclass(frozen=True, slots=True)
class Options:
    """How the page is served. ``names``: hosts by which it may be asked for beside localhost and addresses."""

    host: str = "127.0.0.1"
    port: int = 8100
    names: tuple[str, ...] = ()
    token: str = ""
    """An operator's; empty where nobody may command."""
    broker: str = ""
    """Whose devices are commanded."""


def read_token(path: Path) -> str:
    """An operator's token. Raises ValueError that names the file for one that is too short to be a secret."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--token-file {path}: {error}") from None
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable():
        raise ValueError(
            f"--token-file {path}: a token is one line of at least {LEAST_TOKEN} printable ASCII characters; make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token


def app(watched: Watched, options: Options, ending: asyncio.Event | None = None) -> ASGIApp:
    """The whole of it as an ASGI application. Streams end when ``ending`` is set."""
    ended = ending or asyncio.Event()
    listeners = 0

    async def file(request: Request) -> Response:
        name, kind = FILES[request.url.path]
        return FileResponse(STATIC / name, media_type=kind)

    async def state(request: Request) -> Response:
        return _json(whole(watched, options))

    async def history(request: Request) -> Response:
        device, session = request.query_params.get("device", ""), request.query_params.get("session", "")
        return _json({"version": watched.version, "points": watched.history(device, session)})

    async def events(request: Request) -> Response:
        nonlocal listeners
        if listeners >= LISTENERS:
            return PlainTextResponse(f"{LISTENERS} pages listen already; close one\n", 503)

        async def stream() -> AsyncIterator[bytes]:
            nonlocal listeners
            listeners += 1
            try:
                async for event in changes(watched, options, ended):
                    yield event
            finally:
                listeners -= 1

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    async def scrape(request: Request) -> Response:
        return Response(metrics.text(watched), headers={"content-type": metrics.CONTENT_TYPE})

    async def command(request: Request) -> Response:
        return await _command(request, watched, options)

    routes = [Route(path, file, methods=["GET"]) for path in FILES]
    routes += [
        Route("/api/state", state, methods=["GET"]),
        Route("/api/history", history, methods=["GET"]),
        Route("/api/devices/{device}/{what:str}", command, methods=["POST"]),
        Route("/events", events, methods=["GET"]),
        Route("/metrics", scrape, methods=["GET"]),
    ]
    return _Guarded(Starlette(routes=routes), options.names)


def whole(watched: Watched, options: Options) -> dict[str, Any]:
    """All that a page needs to begin with, but curves."""
    return {
        "version": watched.version,
        "stages": STAGES,
        "commands": bool(options.token),
        "live": bool(options.broker),
        "devices": list(watched.devices.values()),
    }


async def changes(watched: Watched, options: Options, ended: asyncio.Event) -> AsyncIterator[bytes]:
    """Server-sent events: ``state`` with everything, then ``devices`` that changed and ``points`` that came, as they do."""
    version = watched.version
    yield _event("state", whole(watched, options))
    quiet = 0.0
    while not ended.is_set():
        await asyncio.sleep(PAUSE_S)
        now = watched.version
        if now == version:
            quiet += PAUSE_S
            if quiet >= QUIET_S:
                quiet = 0.0
                yield b": still here\n\n"
            continue
        quiet = 0.0
        if watched.lost > version:  # it was away for longer than points are kept
            yield _event("state", whole(watched, options))
        else:
            devices = [watched.devices[name] for name, at in watched.changed.items() if at > version]
            points = [(device, session, point) for at, device, session, point in watched.recent if at > version]
            if devices:
                yield _event("devices", devices)
            if points:
                yield _event("points", points)
        version = now


def _event(name: str, data: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


def _json(data: Any) -> Response:
    return Response(msgspec.json.encode(data), media_type="application/json")


_BODIES: Final[dict[str, type[commands.Asked] | type[commands.Stopped]]] = {"mode": commands.Asked, "stop": commands.Stopped}
"""Commands by name, and what they take."""


async def _command(request: Request, watched: Watched, options: Options) -> Response:
    def refused(status: int, why: str) -> Response:
        return JSONResponse({"error": why}, status)

    device, what = request.path_params["device"], request.path_params["what"]
    if not options.token:
        return refused(403, "this page only shows; start services.monitor with --token-file for commands")
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    if not hmac.compare_digest(given, options.token.encode()):
        await asyncio.sleep(0.5)  # guessing takes time
        return refused(401, "that is not the operator's token")
    if not LEVEL.fullmatch(device) or device not in watched.devices:
        return refused(404, "no such device is on the bus")
    if what not in _BODIES:
        return refused(404, f"no such command; there are {' and '.join(_BODIES)}")
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        return refused(415, "a command is application/json")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES:
            return refused(413, f"a command has at most {BODY_BYTES} bytes")
    try:
        asked = msgspec.json.decode(body, type=_BODIES[what])
    except msgspec.DecodeError as error:
        return refused(422, str(error))
    trainer = watched.devices[device].services.get("trainer")
    busy = trainer is not None and trainer.online
    try:
        if isinstance(asked, commands.Stopped):
            if asked.session not in watched.devices[device].runs:
                return refused(404, f"device {device} has no such run")
            if not busy:
                return refused(409, "no run has this device now; there is nothing to stop")
            await commands.stop(options.broker, device, asked.session)
            log.info("commanded", device=device, stop=asked.session)
            return JSONResponse({"stopping": asked.session})
        if busy:
            return refused(409, "a run has this device, and says itself how it is to run; stop it, or wait for its end")
        told = await commands.tell(options.broker, device, asked)
    except commands.NotDone as error:
        return refused(409, str(error))
    except BusError as error:
        return refused(502, str(error))
    log.info("commanded", device=device, mode=told.mode, rates=str(told.rates), protected=told.scheme.protected)
    return JSONResponse({"seq": told.seq})


class _Guarded:
    """Looks at each request's Host, and gives each answer its headers.

    A page of a stranger's can have its own name resolve to this host's address and then read what is here as if it were its
    own. So a name in Host must be one that we go by; addresses are nobody's name.
    """

    def __init__(self, inner: ASGIApp, names: tuple[str, ...]) -> None:
        self.inner = inner
        self.names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        if self._is_ours(Headers(scope=scope).get("host", "")):
            await self.inner(scope, receive, guarded)
        else:
            answer = PlainTextResponse("Host is no name of this page; allow it with --allow-host NAME\n", 421)
            await answer(scope, receive, guarded)

    def _is_ours(self, host: str) -> bool:
        name = host.rsplit("]", 1)[0].lstrip("[") if host.startswith("[") else host.rsplit(":", 1)[0]
        if name.lower() in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def listen(options: Options) -> socket.socket:
    """The socket that the page is served on; port 0 takes a free one. Raises ValueError where there is none to be had."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"--host {options.host} --port {options.port}: nothing can listen there ({error}); give another port"
        ) from None


def address(at: socket.socket) -> str:
    """Where a browser finds the page."""
    host, port = at.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class _Server(uvicorn.Server):
    """One that leaves signals to whoever runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(watched: Watched, options: Options, at: socket.socket) -> None:
    """Serve the page until cancelled."""
    ending = asyncio.Event()
    config = uvicorn.Config(
        app(watched, options, ending), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1,
        server_header=False, limit_concurrency=4 * LISTENERS, h11_max_incomplete_event_size=16 << 10, ws="none",
    )  # fmt: skip
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[at]))
    try:
        await asyncio.shield(serving)
    finally:
        ending.set()  # what streams would be waited for in vain
        server.should_exit = True
        await serving
