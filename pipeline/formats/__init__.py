"""Formats of other tools, one file each: what `gwm export` writes."""
