"""What users import: from a conversation to a reply of text and pictures. No Lightning."""

from m2chat.pipeline.replier import DrawSettings, Replier

__all__ = ["DrawSettings", "Replier"]
