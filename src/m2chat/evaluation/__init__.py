"""Judging, recording and reporting results."""
