"""Where people talk with it: terminal, web page, HTTP. Everything else is a `m2chat.pipeline.Session`."""
