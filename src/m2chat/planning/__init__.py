"""What a run will need, computed on the meta device: parameters, FLOPs, memory, communication, time."""
