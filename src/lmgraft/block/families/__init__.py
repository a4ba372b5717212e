"""LLM families, one small file each: config fields, name maps, conversions undone.

Families do not know each other.
"""
