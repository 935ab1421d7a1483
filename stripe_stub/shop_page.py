"""``/shop`` and ``/shop/paid``: where customers are led back to, for a shop that has no page of its own."""

from aiohttp import web

from stripe_stub.html import notice, page


async def show(_: web.Request) -> web.StreamResponse:
    return _page("")


async def show_paid(_: web.Request) -> web.StreamResponse:
    return _page(notice("Thank you, you have paid."))


def _page(said: str) -> web.Response:
    return page("Back at the shop", f"<h1>Back at the shop</h1>{said}<p>Its own page would be here.</p>")
