"""Judging images with a run or an exported model."""
