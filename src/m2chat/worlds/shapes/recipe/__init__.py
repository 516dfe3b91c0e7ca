"""Pretraining of the micro backbones: what `make backbones` runs, once, to make `data/micro/`."""
