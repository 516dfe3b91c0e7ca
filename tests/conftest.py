"""Settings that every test needs: no network, one thread, and imports that work on every install."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from m2chat._compat import ensure_torchvision

ensure_torchvision()
torch.set_num_threads(1)  # tests compare numbers, and some fork
