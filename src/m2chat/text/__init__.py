"""Text and tokens: tokenizers, the view of a conversation from a reply, the layout of a sequence (Eq. 1)."""

from m2chat.text.clip_tokenizers import CaptionTokens
from m2chat.text.layout import DESCRIBE, Encoded, Layout
from m2chat.text.tokenizer import M2ChatTokenizer
from m2chat.text.view import Request, View, view_of

__all__ = ["DESCRIBE", "CaptionTokens", "Encoded", "Layout", "M2ChatTokenizer", "Request", "View", "view_of"]
