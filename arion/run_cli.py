"""`arion run`: the operator's runs over the service, from a run file to the merged model."""

from arion.parts import Part, group_of

RUN_PARTS = {
    "plan": Part(
        "Show what a run would do and cost each member; nothing is changed and nobody is asked.",
        "arion.run_drive_cli:plan_command",
    ),
    "submit": Part(
        "Make a run and carry it out over the service's members, to its end.",
        "arion.run_drive_cli:submit_command",
    ),
    "resume": Part(
        "Carry a run on from wherever it stands: not begun, interrupted or stopped.",
        "arion.run_drive_cli:resume_command",
    ),
    "cancel": Part(
        "End a run for good; what nodes have released stays charged.",
        "arion.run_drive_cli:cancel_command",
    ),
    "list": Part(
        "List all runs and where they stand.",
        "arion.run_watch_cli:list_command",
    ),
    "watch": Part(
        "Follow a run until it ends or stops. Exit code 0: it is finished; 1: it is not.",
        "arion.run_watch_cli:watch_command",
    ),
    "model": Part(
        "Write a run's model, adapters merged, as a plain model folder.",
        "arion.run_drive_cli:model_command",
    ),
}
run_app = group_of(RUN_PARTS, help="Runs over the service. For the operator.")
