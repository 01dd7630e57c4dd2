"""FedAvg of a constant update in NVIDIA FLARE's simulator, timed; run by its own environment.

python round_flare.py FOLDER PARAMETERS CLIENTS ROUNDS
python round_flare.py client FOLDER                     as FLARE starts each client
"""

import resource
import sys
import time
from pathlib import Path

import numpy as np


def serve(folder: Path, parameters: int, clients: int, rounds: int) -> None:
    """Run the job; print the server's largest memory, MB."""
    from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe  # noqa: PLC0415
    from nvflare.recipe.sim_env import SimEnv  # noqa: PLC0415

    np.save(folder / "start.npy", np.zeros(parameters, np.float32))
    recipe = NumpyFedAvgRecipe(
        name="rounds",
        initial_ckpt=str(folder / "start.npy"),
        min_clients=clients,
        num_rounds=rounds,
        train_script=__file__,
        train_args=f"client {folder}",
    )
    recipe.execute(SimEnv(num_clients=clients, num_threads=clients)).get_result()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def train(folder: Path) -> None:
    """Answer each model with the model plus one; write down when it came."""
    import nvflare.client as flare  # noqa: PLC0415

    flare.init()
    with (folder / flare.get_site_name()).open("w", buffering=1) as file:
        while flare.is_running() and (model := flare.receive()) is not None:
            file.write(f"{time.monotonic()}\n")
            update = {name: array + 1 for name, array in model.params.items()}
            flare.send(flare.FLModel(params=update))


if __name__ == "__main__":
    if sys.argv[1] == "client":
        train(Path(sys.argv[2]))
    else:
        serve(Path(sys.argv[1]), *map(int, sys.argv[2:]))
