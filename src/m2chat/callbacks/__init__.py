"""Callbacks: what is measured, shown and written while a model trains or is tested, one concern a file."""
