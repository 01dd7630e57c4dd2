"""Lower bounds on epsilon from what an attacker guesses right: scoring only, no data."""
