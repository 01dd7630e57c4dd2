"""`arion privacy`: budgets planned and audited, ledgers checked, consents explained. Offline."""

from arion.parts import Part, group_of

PRIVACY_PARTS = {
    "ledger": Part("Budgets and rounds, as they were written down.", "arion.ledger_cli:ledger_app"),
    "consent": Part("What an institution agreed to.", "arion.consent_cli:consent_app"),
    "plan": Part(
        "Work out what a run costs and how noisy it is, before anyone consents. Reads no data.",
        "arion.plan_cli:plan_command",
    ),
    "budget": Part(
        "Show what each data set's units were charged, what is left, and what a next run may cost.",
        "arion.account_cli:budget_command",
    ),
    "disjoint": Part(
        "Count the units of a node's data that belong to another data set; reads data, writes "
        "nothing.",
        "arion.disjoint_cli:disjoint_command",
    ),
    "audit": Part(
        "Attack a run or a model, and set what is shown beside what is claimed.",
        "arion.audit_cli:audit_command",
    ),
    "plant": Part(
        "Draw secrets to plant in training data, for `arion privacy audit` to look for afterwards.",
        "arion.audit_cli:plant_command",
    ),
    "calibrate": Part(
        "Find the least noise multiplier that keeps a schedule within an epsilon.",
        "arion.budget_cli:calibrate_command",
    ),
    "epsilon": Part(
        "Compute the epsilon of a schedule: the inverse of `calibrate`.",
        "arion.budget_cli:epsilon_command",
    ),
}
privacy_app = group_of(
    PRIVACY_PARTS, help="Plan budgets, check ledgers, explain consents, offline."
)
