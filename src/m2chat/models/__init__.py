"""The networks: pure torch, no Lightning, no tokenizer."""
