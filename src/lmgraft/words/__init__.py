"""Findings, changes and numbers in English: the one room that makes sentences, the last step before a reader.

It takes plain records and decides nothing; no other room reads what it writes.
"""
