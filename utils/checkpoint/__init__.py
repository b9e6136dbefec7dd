"""Checkpoints: files of plain data that build a model again, and foreign files read as data."""

from utils.checkpoint.file import build_model, load_checkpoint, pack_model, plain, read_checkpoint, save_checkpoint

__all__ = ["build_model", "load_checkpoint", "pack_model", "plain", "read_checkpoint", "save_checkpoint"]
