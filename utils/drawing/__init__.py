"""Text in pictures and plots, in any script for which there is a font. Importing it gives ultralytics our Annotator."""

from utils.drawing.annotator import Annotator

__all__ = ["Annotator"]
