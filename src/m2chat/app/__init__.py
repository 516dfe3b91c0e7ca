"""Where people talk with it: a terminal. Everything else is a `m2chat.pipeline.Session`."""
