"""The mathematics of the metrics, without any training framework."""
