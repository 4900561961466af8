"""What the benchmarks do with torch and upstream's classes: only here, imported by the sub-commands that need it."""
