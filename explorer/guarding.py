"""Who may ask the HTTP service, how much at once, and how its answers are written."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import logging
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search_spaces.errors import InputError

OPEN_PATHS = ("/health", "/ready")  # that nobody needs a token for
PAGE_PATH = "/ui"  # of the interactive page, where a browser asks people for the token
MAX_JSON_BYTES = 4 * 2**20

logger = logging.getLogger("ray.serve")


class PlainJSON(JSONResponse):
    """JSON of ASCII alone; what is not finite is null."""

    def render(self, content: Any) -> bytes:
        try:
            text = json.dumps(content, allow_nan=False, separators=(",", ":"))
        except ValueError:
            text = json.dumps(finite(content), allow_nan=False, separators=(",", ":"))
        return text.encode("ascii")


def finite(value: Any) -> Any:
    """The same document with null for what is no finite number."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(own) for key, own in value.items()}
    return [finite(own) for own in value] if isinstance(value, list | tuple) else value


class Guard:
    """Lets in who bears the token, as much as may be, and lets no error out but as one line.

    Args:
        app: that answers.
        token_digest: sha256 of the token; None: nobody needs one.
        max_upload_bytes: of a request with files; of others `MAX_JSON_BYTES` at most.
    """

    def __init__(self, app: ASGIApp, *, token_digest: bytes | None, max_upload_bytes: int) -> None:
        self.app, self.token_digest = app, token_digest
        self.max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and not self._may(scope):
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        has_begun, size = False, 0
        limit = self._limit(scope)

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise _too_large(limit)
            return message

        async def noticed(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, limited, noticed)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if not has_begun:
                response = PlainJSON({"detail": "the service failed; its log says why"}, 500)
                await response(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        if not self._may(scope):
            scheme = 'Basic realm="token as password"' if _is_of_page(scope) else "Bearer"
            return PlainJSON(
                {"detail": "expected the header Authorization: Bearer TOKEN, with the right token"},
                401,
                {"WWW-Authenticate": scheme},
            )
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length) > self._limit(scope):
            error = _too_large(self._limit(scope))
            return PlainJSON({"detail": error.detail}, error.status_code)
        return None

    def _may(self, scope: Scope) -> bool:
        if self.token_digest is None or scope["path"] in OPEN_PATHS:
            return True
        scheme, _, token = _header(scope, b"authorization").partition(b" ")
        scheme, token = scheme.lower(), token.strip()
        if scheme == b"basic" and _is_of_page(scope):
            scheme, token = b"bearer", _password(token)
        digest = hashlib.sha256(token).digest()
        return hmac.compare_digest(digest, self.token_digest) and scheme == b"bearer"

    def _limit(self, scope: Scope) -> int:
        is_form = _header(scope, b"content-type").lower().startswith(b"multipart/form-data")
        return self.max_upload_bytes if is_form else min(MAX_JSON_BYTES, self.max_upload_bytes)


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the request is larger than {limit} bytes")


def _is_of_page(scope: Scope) -> bool:
    path: str = scope["path"]
    return path == PAGE_PATH or path.startswith(f"{PAGE_PATH}/")


def _password(credentials: bytes) -> bytes:
    """Of NAME:PASSWORD in base64; empty where they are none."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def token_digest(host: str, token_file: Path | None) -> bytes | None:
    """sha256 of the token in a file; None where there is none and, on loopback, none is needed.

    Raises:
        InputError: a host that others reach and no file, or one that is no good secret.
    """
    if token_file is None:
        if is_loopback(host):
            return None
        raise InputError(
            f"--host {host}: other machines reach it, so requests must bear a token; name "
            f"a file that holds one with --token-file, or listen on 127.0.0.1"
        )
    try:
        with token_file.open("rb") as file:
            mode, content = os.fstat(file.fileno()).st_mode, file.read(4096)
    except OSError as error:
        raise InputError(f"--token-file {token_file}: cannot be read ({error.strerror})") from error
    # a group may read it: so secrets are mounted for processes that are not root
    if mode & (stat.S_IWGRP | stat.S_IRWXO):
        raise InputError(
            f"--token-file {token_file}: others may read or change it; chmod 600 {token_file}"
        )
    token = content.strip()
    if not token or not all(0x21 <= byte <= 0x7E for byte in token):
        raise InputError(
            f"--token-file {token_file}: expected one token of printable characters, no blanks; "
            f"write one, for example with: openssl rand -hex 32"
        )
    return hashlib.sha256(token).digest()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
