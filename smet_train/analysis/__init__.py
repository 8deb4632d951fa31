"""Reading run folders: summaries and tables."""
