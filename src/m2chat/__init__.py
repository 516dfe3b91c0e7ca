"""M²Chat: conversations in which both sides send text and pictures."""

__version__ = "0.1.0"
