"""Exporting a model: files are written, proven, and only then given their final names."""

from utils.deploy.write import ExportError
from utils.export.options import Options
from utils.export.pipeline import export
from utils.export.report import Report

__all__ = ["ExportError", "Options", "Report", "export"]
