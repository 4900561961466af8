"""Voices: which there are (catalogue), and those that people upload (clip, store, prepared)."""
