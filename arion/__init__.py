"""The front door: command line, simulation and reports."""
