"""Real node processes on a network that fails, under load, followed by the checks of the simulator (`make chaos`)."""
