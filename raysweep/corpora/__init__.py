"""Text -> documents -> tokenizer -> memory-mapped shards -> batches."""
