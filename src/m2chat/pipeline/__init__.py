"""From a conversation to a reply of text and pictures: the interface for users of the library. No Lightning."""

from m2chat.pipeline.drawing import DrawSettings
from m2chat.pipeline.events import Drawn, Event, Finished, Notice, Progress, Usage, Words
from m2chat.pipeline.outputs import OutputImage, PipelineOutput
from m2chat.pipeline.pipeline import M2ChatPipeline
from m2chat.pipeline.replier import Replier
from m2chat.pipeline.session import Session
from m2chat.pipeline.state import SessionSettings

__all__ = [
    "DrawSettings",
    "Drawn",
    "Event",
    "Finished",
    "M2ChatPipeline",
    "Notice",
    "OutputImage",
    "PipelineOutput",
    "Progress",
    "Replier",
    "Session",
    "SessionSettings",
    "Usage",
    "Words",
]
