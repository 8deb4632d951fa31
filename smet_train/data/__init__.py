"""Data: sources of documents, tokenizer, packing into windows, batches. Every iterator yields its state."""
