"""A run's rounds as they happen: its components, the rounds in flight, their recorder, and the weight updates."""
