"""The execution of a run's rounds: the run components, the rounds in flight, their recorder, and the weight updates."""
