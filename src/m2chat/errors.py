"""Errors that a command prints as one clear message instead of a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can put right: a setting, a path, a file.

    The message names the setting, its value, the choices and the remedy.
    """


class TrainingDivergedError(RuntimeError):
    """Training stopped because its losses or gradients were not finite for too many steps in a row."""
