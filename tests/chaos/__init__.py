"""Failures from outside, many of each kind, and the table of figures in ``docs/reliability.md``.

``python -m chaos`` runs them (``make chaos``); ``test_chaos.py`` runs a few of each (``make chaos-quick``).
"""
