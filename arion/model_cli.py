"""`arion model`: what a model is made of, brought in, grown, run and measured."""

from arion.parts import Part, group_of

MODEL_PARTS = {
    "list": Part(
        "List the presets of the family with their exact sizes.",
        "arion.model_show_cli:list_command",
    ),
    "show": Part(
        "Show a model's sizes, memory, experts and their owners; no weight is loaded.",
        "arion.model_show_cli:show_command",
    ),
    "import": Part(
        "Bring in a local Qwen3, Qwen3-MoE, Llama 3 or Mixtral folder; the function is kept.",
        "arion.import_cli:import_command",
    ),
    "pretrain": Part(
        "Train a preset on public text, by one process or by those of torchrun.",
        "arion.pretrain_cli:pretrain_command",
    ),
    "generate": Part("Generate text from prompts.", "arion.generate_cli:generate_command"),
    "evaluate": Part(
        "Evaluate a model on text: loss, perplexity and bits per byte, per file and in total.",
        "arion.evaluate_cli:evaluate_command",
    ),
    "export": Part(
        "Make an artefact for a tier: planned to fit, run in its runtime, published if it passes.",
        "arion.export_cli:export_command",
    ),
    "verify": Part(
        "Check an artefact offline: every byte, its passport, its signature. Exit 2 if anything "
        "fails.",
        "arion.export_cli:verify_command",
    ),
    "withdraw": Part(
        "Remove an owner's experts, revoke and remake every artefact that held them, sign a "
        "receipt.",
        "arion.registry_cli:withdraw_command",
    ),
    "receipt": Part(
        "Check a withdrawal's receipt offline, and the model and the registry against it.",
        "arion.registry_cli:receipt_command",
    ),
    "expert": Part(
        "Experts that an institution owns: train, add, compose, withdraw.",
        "arion.expert_cli:expert_app",
        {"train-private": "arion.expert_private_cli:train_private_command"},
    ),
    "registry": Part(
        "Artefacts with their versions and lineage: add, list, fetch.",
        "arion.registry_cli:registry_app",
    ),
    "verifier": Part("Train who chooses among answers.", "arion.verifier_cli:verifier_app"),
}
model_app = group_of(MODEL_PARTS, help="Look at models, bring them in, run them.")
