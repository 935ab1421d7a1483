"""``/shop/{what}``: stands in for the shop's own page, where it has none to lead customers back to."""

from aiohttp import web

from stripe_stub.html import notice, page

_SAID = {
    "paid": notice("Thank you, you have paid."),
    "cancelled": notice("Nothing was paid.", bad=True),
}


async def show(request: web.Request) -> web.StreamResponse:
    said = _SAID.get(request.match_info["what"], "")
    return page("Back at the shop", f"<h1>Back at the shop</h1>{said}<p>Its own page would be here.</p>")
