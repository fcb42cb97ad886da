"""The server: routes, who may use them, and the headers that keep pages inert."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.feedback.comparisons import label_files
from trimtab.feedback.judgement import Judgement
from trimtab.feedback.records import to_jsonl
from trimtab.label import form as verdict
from trimtab.label import pages
from trimtab.label.access import Access, Visitor
from trimtab.label.database import StoreError
from trimtab.label.pages import Pages
from trimtab.label.store import Assignment, Store

COOKIE = "trimtab_label"
LARGEST = 64 * 1024
"""Bytes of a form."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guarded:
    """Adds ``HEADERS`` to every response, errors too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self.app(scope, receive, sent)


def _visitor(request: Request) -> Visitor:
    access: Access = request.app.state.access
    visitor = access.visitor(request.cookies.get(COOKIE))
    if visitor is None:
        raise HTTPException(
            403, "Open your invitation link first; whoever runs this server has it."
        )
    return visitor


def _owner(visitor: Annotated[Visitor, Depends(_visitor)]) -> Visitor:
    if not visitor.owner:
        raise HTTPException(403, "This page is for whoever runs the server.")
    return visitor


def _annotator(visitor: Annotated[Visitor, Depends(_visitor)]) -> Visitor:
    if not visitor.labels:
        raise HTTPException(
            403, "The owner's link shows progress; to label, use a name's own link."
        )
    return visitor


async def _form(
    request: Request, visitor: Annotated[Visitor, Depends(_annotator)]
) -> dict[str, str]:
    """The fields of a form that this visitor's own page sent."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "Sent from another site.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            raise HTTPException(413, "That is too long; shorten the reason.")
    try:
        form = verdict.flat(
            parse_qs(body.decode(), keep_blank_values=True, max_num_fields=500, errors="strict")
        )
    except ValueError:
        raise HTTPException(400, "Not a form.") from None
    if not visitor.csrf_is(form.get("csrf", "")):
        raise HTTPException(403, "This page is from another session: load it again.")
    return form


Anyone = Annotated[Visitor, Depends(_visitor)]
Owner = Annotated[Visitor, Depends(_owner)]
Annotator = Annotated[Visitor, Depends(_annotator)]
Form = Annotated[dict[str, str], Depends(_form)]


class Routes:
    """Every route. Handlers run in threads: the store has its own lock."""

    def __init__(self, made: Pages, store: Store, access: Access, here: str) -> None:
        self.pages, self.store, self.access, self.here = made, store, access, here
        self.files = {name: pages.static(name) for name in pages.STATIC}

    def join(self, token: str) -> Response:
        """An invitation link: it signs in the one person that it was made for."""
        name = self.access.joins(token)
        if name is None:
            raise HTTPException(403, "This link is not, or no longer, an invitation.")
        to = RedirectResponse("/", 303)
        # Lax, as a strict cookie would be missing after a click in a mail.
        to.set_cookie(COOKIE, self.access.session(name), httponly=True, samesite="lax")
        return to

    def label(self, visitor: Anyone) -> Response:
        """The question of now."""
        if not visitor.labels:
            return RedirectResponse("/progress", 303)
        return self._next(visitor)

    def _next(self, visitor: Visitor, said: str = "", warn: str = "") -> Response:
        place = self.store.next(visitor.name, time.time())
        return HTMLResponse(self.pages.label(visitor, place, said, warn))

    def verdict(self, request: Request, visitor: Annotator, form: Form) -> Response:
        """A verdict; answered after it is on the disk, with the next question."""
        try:
            place, turn = int(form.get("place", "")), int(form.get("turn", ""))
        except ValueError:
            raise HTTPException(400, "No such question.") from None

        def judge(asked: Assignment) -> Judgement:
            return verdict.judgement(form, asked, self.pages.rubric, time.time())

        try:
            outcome = self.store.record(place, turn, visitor.name, judge)
        except StoreError:
            raise
        except ValueError as error:
            raise HTTPException(422, f"Not saved: {error}.") from None
        if outcome == "not yours":
            raise HTTPException(403, "That question was not put to you.")
        warn = {
            "other": "You had judged that one already, and the first verdict stands; undo changes it.",
            "late": "That one took so long that someone else has judged it; nothing was saved.",
        }.get(outcome, "")
        return self._on(request, visitor, "" if warn else "Saved.", warn)

    def undo(self, request: Request, visitor: Annotator, form: Form) -> Response:
        """Take the last verdict back and ask again."""
        if self.store.undo(visitor.name, time.time()):
            return self._on(request, visitor, "Taken back: judge it again.", "")
        return self._on(request, visitor, "", "There is nothing to take back.")

    def _on(self, request: Request, visitor: Visitor, said: str, warn: str) -> Response:
        """The next question at once to htmx; to a plain form, a page that can be loaded again."""
        if request.headers.get("hx-request") or warn:
            return self._next(visitor, said, warn)
        return RedirectResponse("/", 303)

    def guidelines(self, visitor: Anyone) -> Response:
        """What annotators are told."""
        return HTMLResponse(self.pages.guidelines(visitor))

    def progress(self, visitor: Anyone) -> Response:
        """How far it is."""
        return HTMLResponse(self.pages.progress(visitor))

    def links(self, visitor: Owner) -> Response:
        """Everyone's invitation."""
        made = [(n, f"{self.here}/join/{self.access.token(n)}") for n in self.access.names()]
        return HTMLResponse(self.pages.links(visitor, made))

    def export(self, visitor: Owner, name: str) -> Response:
        """A file of labels as it would be written now."""
        found = label_files(self.store.records()).get(name)
        if found is None:
            raise HTTPException(404, "There is no such file.")
        return Response(
            to_jsonl(found),
            media_type="application/jsonl",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )

    def static(self, visitor: Anyone, name: str) -> Response:
        """One of the page's own files; there are no others to find."""
        if name not in self.files:
            raise HTTPException(404, "There is no such file.")
        return Response(self.files[name], media_type=pages.STATIC[name])


def _refused(request: Request, error: Exception) -> Response:
    """An error, as words to htmx and as a page to others."""
    status, text = 507, str(error)
    if isinstance(error, AnyHTTPException):
        status, text = error.status_code, str(error.detail)
    if request.headers.get("hx-request"):
        return PlainTextResponse(text, status)
    titles = {403: "Not for you", 404: "Not here", 422: "Not saved", 507: "Not saved"}
    return HTMLResponse(Pages.closed(titles.get(status, "Not like this"), text), status)


def make(made: Pages, store: Store, access: Access, here: str, hosts: Sequence[str]) -> ASGIApp:
    """The application.

    Args:
        made: Its pages.
        store: Where verdicts go.
        access: Who may come in.
        here: Address at the start of every link.
        hosts: Names that a request may call this server by; others are refused, so that no
            foreign name can be pointed at it (DNS rebinding).
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.access = access
    routes = Routes(made, store, access, here)
    for path, method, handler in (
        ("/join/{token}", "GET", routes.join),
        ("/", "GET", routes.label),
        ("/verdict", "POST", routes.verdict),
        ("/undo", "POST", routes.undo),
        ("/guidelines", "GET", routes.guidelines),
        ("/progress", "GET", routes.progress),
        ("/links", "GET", routes.links),
        ("/export/{name}", "GET", routes.export),
        ("/static/{name}", "GET", routes.static),
    ):
        app.add_api_route(path, handler, methods=[method], response_class=HTMLResponse)
    app.add_exception_handler(StoreError, _refused)
    app.add_exception_handler(AnyHTTPException, _refused)
    return Guarded(TrustedHostMiddleware(app, allowed_hosts=list(hosts)))
