"""Weights in every form that people have them: reading, checking, loading and exporting."""
