"""A faithful stand-in for Phase 1, the cast service that Castgate stands in front of.

Start it with ``python -m upstream_stub --port 8081 --database-url … --redis-url …``; it makes its own tables
(`migrations/`, also runnable with ``psql -f``), answers as Phase 1 does and knows nothing of the gateway. It shares
no code with `gateway/`, so that a mistake there cannot hide behind the same mistake here.

What it answers
    POST   /v1/auth/login   ``{"email", "password"}`` → 200 and ``Set-Cookie: session=…``; 401
    POST   /v1/auth/logout  → 204, the session is gone
    POST   /v1/keys         ``{"name"}`` → 201 with the secret ``key``, told this once
    GET    /v1/keys         → ``{"keys": […]}``
    DELETE /v1/keys/{id}    → 204; 404
    POST   /v1/cast         ``{"input": "…"}`` → ``{"id", "status", "result", "elapsed_ms"}`` and a row in `casts`; with
                            ``Accept: text/event-stream`` the same as events, the last (``done``) telling the cast
    GET    /v1/casts        ``?limit=`` (50, at most 500) → ``{"casts": […]}``, newest first
    GET    /v1/live         WebSocket, echoes
    GET    /health          → ``{"status": "ok"}``
Who asks is told by ``Authorization: Bearer ck_…``, else ``X-API-Key: ck_…``, else the cookie ``session``; the first of
them that is there decides. Wrong or none: 401. Errors are ``{"error": "<code>", "message": "<a sentence>"}``.
More than 60 casts a minute from one user: 429 ``too_many_requests`` with ``Retry-After`` (fixed window in Redis).

What only the stub answers, for tests of whatever is in between (`probes.py`)
    GET    /v1/blob?bytes=N[&chunked=1]   N known bytes
    POST   /v1/blob                       → ``{"bytes", "sha256"}`` of the body
    POST   /v1/mirror                     the body, sent back while it comes in
    ANY    /v1/echo, /v1/echo/…           → the request as it arrived: target, fields in order and case, body digest
    ANY    /v1/raw/{name}                 answers that are legal and rare, byte by byte as listed in `raw_answers.py`

Faults, on any request (but not inside a WebSocket), by a header: ``X-Stub-Fault: delay=250ms, cut=body`` (`faults.py`).

How to find out who asks, for a reader of the tables such as the gateway; ``$1`` is the SHA-256 of the secret as
64 lower-case hex digits, and no row means that the credential is unknown::

    -- API key → account
    SELECT user_id::text AS account_id FROM api_keys WHERE key_sha256 = $1

    -- session cookie → account
    SELECT user_id::text AS account_id FROM sessions WHERE token_sha256 = $1 AND expires_at > now()
"""
