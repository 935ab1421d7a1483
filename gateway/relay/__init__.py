"""The HTTP data plane. ``exchange.py`` is the request path; ``client.py`` and ``upstream.py`` are its two ends."""
