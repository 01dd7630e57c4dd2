"""The service that plans rounds and opens sums."""
