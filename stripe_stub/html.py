"""The look of the hosted pages: one column, no script, nothing fetched from elsewhere, all of it usable by keyboard."""

from html import escape

from aiohttp import web

from stripe_stub.state import Json

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1f36; --quiet: #5b6178; --paper: #fff; --ground: #f5f6fa; --line: #d5d9e4;
  --accent: #4b45d6; --on-accent: #fff; --bad: #b3123a; --good: #0b6b41 }
@media (prefers-color-scheme: dark) { :root { --ink: #eef0f7; --quiet: #a9afc4; --paper: #1d2130; --ground: #12151f;
  --line: #3a4057; --accent: #a9a5ff; --on-accent: #14122e; --bad: #ff9cb2; --good: #7fe0b3 } }
* { box-sizing: border-box }
body { margin: 0; padding: 2rem 1rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
main { max-width: 30rem; margin: 0 auto; padding: 2rem; background: var(--paper); border: 1px solid var(--line);
  border-radius: .75rem }
h1 { margin: 0 0 1rem; font-size: 1.25rem } h2 { margin: 2rem 0 0; font-size: .875rem; color: var(--quiet) }
p { margin: 0 0 1rem } .quiet { color: var(--quiet); font-size: .875rem; font-weight: 400 }
.amount { font-size: 2rem; font-weight: 600; margin: -.75rem 0 1rem }
main > .quiet { margin: 2rem 0 0; padding: 1rem 0 0; border-top: 1px solid var(--line) }
label { display: block; margin: 1rem 0 .25rem; font-weight: 500 }
input { width: 100%; padding: .625rem .75rem; border: 1px solid var(--quiet); border-radius: .375rem;
  background: transparent; color: inherit; font: inherit }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1rem } .pair > * { min-width: 0 }
button, .button { display: block; width: 100%; margin: .75rem 0 0; padding: .75rem; border: 1px solid var(--quiet);
  border-radius: .375rem; background: transparent; color: inherit; font: inherit; text-align: center; cursor: pointer;
  text-decoration: none }
button.main { margin-top: 1.5rem; border-color: var(--accent); background: var(--accent); color: var(--on-accent);
  font-weight: 600 }
button:hover, .button:hover { border-color: var(--accent) } button.main:hover { opacity: .9 }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px }
.bad, .good { padding: .75rem; border: 1px solid; border-radius: .375rem; font-weight: 500 }
.bad { color: var(--bad) } .good { color: var(--good) }
dl { display: grid; grid-template-columns: auto 1fr; gap: .25rem 1rem; margin: 0 } dt { color: var(--quiet) }
dd { margin: 0; text-align: right }
"""
# No form-action: it would also forbid the way back to the shop after paying.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page(title: str, body: str, *, status: int = 200) -> web.Response:
    """`body` is HTML."""
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n"
        '<p class="quiet">A stand-in for Stripe, to try things out: no money moves, and no real card is taken.</p>\n'
        "</main>\n</body>\n</html>\n"
    )
    return web.Response(text=text, content_type="text/html", status=status, headers=_HEADERS)


def notice(text: str, *, bad: bool = False) -> str:
    role, look = ("alert", "bad") if bad else ("status", "good")
    return f'<p role="{role}" class="{look}">{escape(text)}</p>'


def link(text: str, address: str | None) -> str:
    return f'<a class="button" href="{escape(address)}">{escape(text)}</a>' if address else ""


def button(text: str, name: str, value: str, *, main: bool = False) -> str:
    look = ' class="main"' if main else ""
    return f'<button type="submit" name="{name}" value="{escape(value)}"{look}>{escape(text)}</button>'


def money(cents: int, currency: str) -> str:
    sign = {"usd": "$", "eur": "€", "gbp": "£"}.get(currency, f"{currency.upper()} ")
    return f"{sign}{cents // 100:,}.{cents % 100:02d}"


def price_text(price: Json, quantity: int = 1) -> str:
    recurring = price["recurring"]
    every = recurring["interval"]
    if recurring["interval_count"] != 1:
        every = f"{recurring['interval_count']} {every}s"
    return f"{money(price['unit_amount'] * quantity, price['currency'])} per {every}"
