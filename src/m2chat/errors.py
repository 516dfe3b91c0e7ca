"""Errors that a command prints as one clear message instead of a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can put right: a setting, a path, a file.

    The message names the setting, its value, the choices and the remedy.
    """


class CannotWriteError(UserError, OSError):
    """A file that cannot be written: the message has its path, the bytes that it needs and those that are free."""


class TrainingDivergedError(RuntimeError):
    """Training stopped: too many steps in a row had losses that were not finite, or far above the best."""
