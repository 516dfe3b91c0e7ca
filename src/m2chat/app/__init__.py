"""User interfaces: terminal, web page, HTTP server. Each is a thin layer over `m2chat.pipeline.Session`."""
