"""What users import: from a conversation to a reply of text and pictures. No Lightning."""

from m2chat.pipeline.events import Drawn, Event, Finished, Notice, Progress, Usage, Words
from m2chat.pipeline.outputs import ImagePart, PipelineOutput
from m2chat.pipeline.pipeline import M2ChatPipeline
from m2chat.pipeline.plan import SessionSettings
from m2chat.pipeline.replier import DrawSettings, Replier
from m2chat.pipeline.session import Session

__all__ = [
    "DrawSettings",
    "Drawn",
    "Event",
    "Finished",
    "ImagePart",
    "M2ChatPipeline",
    "Notice",
    "PipelineOutput",
    "Progress",
    "Replier",
    "Session",
    "SessionSettings",
    "Usage",
    "Words",
]
