"""Callbacks: what is measured, shown and written while a model trains or is tested, one concern a file."""

from m2chat._compat import ensure_torchvision

ensure_torchvision()
