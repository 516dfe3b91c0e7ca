"""Shards, sources, the micro world's data sets and the data module: from files to batches."""
