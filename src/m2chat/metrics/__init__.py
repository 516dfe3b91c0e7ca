"""The mathematics of the metrics, without any training framework."""

from m2chat._compat import ensure_torchvision

ensure_torchvision()  # before the first import of torchmetrics, by whatever command
