"""Text and tokens: the tokenizer, the layout of a sequence (Eq. 1) and its spans."""

from m2chat.text.caption_tokens import CaptionTokens
from m2chat.text.layout import DESCRIBE, Encoded, Layout
from m2chat.text.tokenizer import M2ChatTokenizer
from m2chat.text.view import Request, View, view_of

__all__ = ["DESCRIBE", "CaptionTokens", "Encoded", "Layout", "M2ChatTokenizer", "Request", "View", "view_of"]
