"""The label server: routes, their access rights, and security headers."""

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
from trimtab.label.access import Access, Visitor
from trimtab.label.database import StoreError
from trimtab.label.form import flat, judgement
from trimtab.label.pages import STATIC, Pages, static
from trimtab.label.store import Assignment, Store

COOKIE = "trimtab_label"
MAX_FORM = 64 * 1024
"""Bytes."""
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


class SecurityHeaders:
    """Adds ``HEADERS`` to every response, including errors."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _visitor(request: Request) -> Visitor:
    access: Access = request.app.state.access
    visitor = access.visitor(request.cookies.get(COOKIE))
    if visitor is None:
        raise HTTPException(
            403, "Open your invitation link first; ask the person who runs this server for it."
        )
    return visitor


def _owner(visitor: Annotated[Visitor, Depends(_visitor)]) -> Visitor:
    if not visitor.owner:
        raise HTTPException(403, "Only the person who runs the server may see this page.")
    return visitor


def _annotator(visitor: Annotated[Visitor, Depends(_visitor)]) -> Visitor:
    if not visitor.labels:
        raise HTTPException(
            403, "The owner's link shows the progress; to label, use an annotator's link."
        )
    return visitor


async def _form(
    request: Request, visitor: Annotated[Visitor, Depends(_annotator)]
) -> dict[str, str]:
    """The fields of a form that was sent by this visitor's own page."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "This form was sent from another site.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM:
            raise HTTPException(413, "The form is too long; shorten the reason.")
    try:
        form = flat(
            parse_qs(body.decode(), keep_blank_values=True, max_num_fields=500, errors="strict")
        )
    except ValueError:
        raise HTTPException(400, "This is not a valid form.") from None
    if not visitor.csrf_is(form.get("csrf", "")):
        raise HTTPException(403, "This page is from another session; reload it.")
    return form


Anyone = Annotated[Visitor, Depends(_visitor)]
Owner = Annotated[Visitor, Depends(_owner)]
Annotator = Annotated[Visitor, Depends(_annotator)]
Form = Annotated[dict[str, str], Depends(_form)]


class Routes:
    """The handlers. They run in threads; the store has its own lock."""

    def __init__(self, pages: Pages, store: Store, access: Access, address: str) -> None:
        self.pages, self.store, self.access, self.address = pages, store, access, address
        self.files = {name: static(name) for name in STATIC}

    def join(self, token: str) -> Response:
        """An invitation link: signs in its person."""
        name = self.access.joins(token)
        if name is None:
            raise HTTPException(403, "This invitation link is not valid, or no longer.")
        response = RedirectResponse("/", 303)
        # Lax: a strict cookie would not be sent after a click on the link in a mail.
        response.set_cookie(COOKIE, self.access.session(name), httponly=True, samesite="lax")
        return response

    def label(self, visitor: Anyone) -> Response:
        """The current question."""
        if not visitor.labels:
            return RedirectResponse("/progress", 303)
        return self._next(visitor)

    def _next(self, visitor: Visitor, status: str = "", warn: str = "") -> Response:
        assignment = self.store.next(visitor.name, time.time())
        return HTMLResponse(self.pages.label(visitor, assignment, status, warn))

    def verdict(self, request: Request, visitor: Annotator, form: Form) -> Response:
        """Store a verdict and, once it is on the disk, show the next question."""
        try:
            place, turn = int(form.get("place", "")), int(form.get("turn", ""))
        except ValueError:
            raise HTTPException(400, "There is no such question.") from None

        def judge(assignment: Assignment) -> Judgement:
            return judgement(form, assignment, self.pages.rubric, time.time())

        try:
            outcome = self.store.record(place, turn, visitor.name, judge)
        except StoreError:
            raise
        except ValueError as error:
            raise HTTPException(422, f"Not saved: {error}.") from None
        if outcome == "not yours":
            raise HTTPException(403, "This question was not assigned to you.")
        warn = {
            "other": "You have already judged that question, and the first verdict counts. Use Undo to "
            "change it.",
            "late": "That question was open for so long that it went to someone else; nothing was saved.",
        }.get(outcome, "")
        return self._reply(request, visitor, "" if warn else "Saved.", warn)

    def undo(self, request: Request, visitor: Annotator, form: Form) -> Response:
        """Remove the last verdict and ask again."""
        if self.store.undo(visitor.name, time.time()):
            return self._reply(request, visitor, "Undone: judge this question again.", "")
        return self._reply(request, visitor, "", "There is nothing to undo.")

    def _reply(self, request: Request, visitor: Visitor, status: str, warn: str) -> Response:
        """The next question: directly for htmx; by a redirect for a plain form, so that the page can
        be reloaded."""
        if request.headers.get("hx-request") or warn:
            return self._next(visitor, status, warn)
        return RedirectResponse("/", 303)

    def guidelines(self, visitor: Anyone) -> Response:
        """The rubric and the keyboard shortcuts."""
        return HTMLResponse(self.pages.guidelines(visitor))

    def progress(self, visitor: Anyone) -> Response:
        """Progress and agreement."""
        return HTMLResponse(self.pages.progress(visitor))

    def links(self, visitor: Owner) -> Response:
        """Everyone's invitation link."""
        return HTMLResponse(self.pages.links(visitor, links(self.access, self.address)))

    def export(self, visitor: Owner, name: str) -> Response:
        """A label file with the current judgements."""
        rows = label_files(self.store.records()).get(name)
        if rows is None:
            raise HTTPException(404, "There is no such file.")
        return Response(
            to_jsonl(rows),
            media_type="application/jsonl",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )

    def static(self, visitor: Anyone, name: str) -> Response:
        """One of the page's own files; no others are served."""
        if name not in self.files:
            raise HTTPException(404, "There is no such file.")
        return Response(self.files[name], media_type=STATIC[name])


def _refused(request: Request, error: Exception) -> Response:
    """An error, as plain text for htmx and as a page otherwise."""
    status, text = 507, str(error)
    if isinstance(error, AnyHTTPException):
        status, text = error.status_code, str(error.detail)
    if request.headers.get("hx-request"):
        return PlainTextResponse(text, status)
    titles = {403: "No access", 404: "Not found", 422: "Not saved", 507: "Not saved"}
    return HTMLResponse(Pages.closed(titles.get(status, "Invalid request"), text), status)


def links(access: Access, address: str) -> list[tuple[str, str]]:
    """(name, invitation link) of everyone."""
    return [(name, f"{address}/join/{access.token(name)}") for name in access.names()]


def make(pages: Pages, store: Store, access: Access, address: str, hosts: Sequence[str]) -> ASGIApp:
    """The application.

    Args:
        access: Who may sign in.
        address: The beginning of every link.
        hosts: Host names that a request may use; others are refused, which prevents DNS rebinding.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.access = access
    routes = Routes(pages, store, access, address)
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
    return SecurityHeaders(TrustedHostMiddleware(app, allowed_hosts=list(hosts)))
