"""The console: what operators see and do in a browser, on the admin listener (``/console``)."""
