"""The three losses, a function each."""

from m2chat.losses.align import align_loss
from m2chat.losses.ddpm import ddpm_loss
from m2chat.losses.text import text_loss

__all__ = ["align_loss", "ddpm_loss", "text_loss"]
