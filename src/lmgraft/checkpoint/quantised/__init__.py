"""Quantised weights in safetensors and torch files -> float32, a tensor at a time; a file for each format."""
