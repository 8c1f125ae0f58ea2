"""What comes in: records, sources, splits, token ids, batches."""
