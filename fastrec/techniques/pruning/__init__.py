"""Fewer units, heads, blocks, fields and rows."""
