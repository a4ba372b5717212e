"""Images with questions about them, or with captions: files on disk -> batches."""
