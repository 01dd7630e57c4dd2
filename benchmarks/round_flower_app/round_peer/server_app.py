"""FedAvg over all clients; writes down when each round ended."""

import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    config = context.run_config
    nodes = int(config["nodes"])

    def ended(number: int, arrays: ArrayRecord) -> None:
        with Path(str(config["ends"])).open("a") as file:
            file.write(f"{time.monotonic()}\n")

    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=nodes, min_train_nodes=nodes)
    start = ArrayRecord([np.zeros(int(config["parameters"]), np.float32)])
    found = strategy.start(
        grid=grid, initial_arrays=start, num_rounds=int(config["rounds"]), evaluate_fn=ended
    )
    # Sums that are not what four times "plus one" gives would have been timed for nothing.
    assert (found.arrays.to_numpy_ndarrays()[0] == int(config["rounds"])).all()
