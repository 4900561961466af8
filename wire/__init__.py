"""What gateway and worker agree on: segments, frames, control-link messages, error codes. Standard library only."""
