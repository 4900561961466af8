"""The machine that a process runs on: its service manager, and what `doctor` finds there. For gateway and worker."""
