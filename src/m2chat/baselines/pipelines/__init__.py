"""Rows "SD 1.5" and "SDXL": diffusers pipelines that draw the reference captions, nothing trained."""
