"""Encoders that know nothing of grafts, and adapters that describe encoders as `contracts.Host`."""
