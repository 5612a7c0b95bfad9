"""What each architecture costs as the context grows: memory and speed, measured and predicted. See `run.run`."""
