"""The shop of "pay by QR": serves the checkout page, makes codes, takes payments. See README.md."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from wirepost import Message
from wirepost.service import Binding, WirepostApp
from wirepost.service.web import Identity, lifespan, token_route

HERE = Path(__file__).parent
CLIENT = HERE.parents[1] / "clients/typescript/dist"
CODE_SECONDS = 60
COOKIE = "checkout"

# Code → identity of the page, order, when it ends. A real shop keeps this in its database.
codes: dict[str, tuple[str, str, float]] = {}


def binding() -> Binding | None:
    """In a cluster the mounted Secret; else `wirepost dev` on this machine."""
    if "SERVICE_BINDING_ROOT" in os.environ:
        return None
    amqp = os.environ.get("WIREPOST_AMQP", "amqp://guest:guest@localhost:5672")
    edge = os.environ.get("WIREPOST_URL", "http://127.0.0.1:8080")
    return Binding.of("pay-by-qr", amqp=amqp, queues=["qr-refresh"], edge=edge, api_key="dev-pay-by-qr")


service = WirepostApp(binding())


@service.on("qr.refresh", queue="qr-refresh")
async def refresh(message: Message) -> None:
    """A page wants a code. It waits for this answer: `client.request` there."""
    now = time.time()
    for code in [code for code, (_, _, ends) in codes.items() if ends < now]:
        del codes[code]
    code = secrets.token_urlsafe(12)
    codes[code] = (str(message.from_unique_id), message.content["orderId"], now + CODE_SECONDS)
    await service.reply(message, "qr.refreshed", {"path": f"/pay/{code}", "seconds": CODE_SECONDS})


async def pay(request: Request) -> Response:
    """What the phone opens: it pays, and the page is told, even if it is away for a moment."""
    page, order, ends = codes.pop(request.path_params["code"], ("", "", 0.0))
    if ends < time.time():
        return PlainTextResponse("This code is no longer valid. Scan the new one.", 410)
    # With an id made from the order: a repeat is dropped by the page.
    await service.push("payment.completed", {"orderId": order}, to=page, message_id=f"paid-{order}"[:64])
    return PlainTextResponse("Paid. Thank you!")


async def who(request: Request) -> Identity | None:
    """Every visitor is somebody: the cookie of the checkout page. A real shop uses its login."""
    visitor = request.cookies.get(COOKIE)
    return Identity(visitor, "page") if visitor else None


async def page(request: Request) -> Response:
    response = FileResponse(HERE / "page.html")
    if COOKIE not in request.cookies:
        response.set_cookie(COOKIE, secrets.token_urlsafe(18), httponly=True, samesite="lax")
    return response


async def client(request: Request) -> Response:
    """The TypeScript client, which `make typescript` builds."""
    path = (CLIENT / request.path_params["name"]).resolve()
    if path.parent != CLIENT.resolve() or path.suffix != ".js" or not path.is_file():
        return PlainTextResponse("not found", 404)
    return FileResponse(path, media_type="text/javascript")


async def ready(_: Request) -> Response:
    return JSONResponse({"ready": service.healthy}, 200 if service.healthy else 503)


web = Starlette(
    routes=[
        Route("/", page),
        Route("/client/{name}", client),
        Route("/pay/{code}", pay),
        Route("/readyz", ready),
        token_route(service, who),
    ],
    lifespan=lifespan(service),
)

if __name__ == "__main__":
    uvicorn.run(web, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
