"""Telling reasoning and tool calls apart from text while an answer arrives. Pure folds, one for each model family."""

from teengined.service.segments.choice import open_fold, parser_for
from teengined.service.segments.fold import SegmentDelta, SegmentFold

__all__ = ["SegmentDelta", "SegmentFold", "open_fold", "parser_for"]
