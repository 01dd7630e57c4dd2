"""FedAvg of a constant update on Flower."""
