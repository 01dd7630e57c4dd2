"""Names of the units of privacy that are no field of the data.

| unit | neighbouring data differ in | what is clipped |
|---|---|---|
| "record" | one record | a record's gradient |
| a field, e.g. "patient" | all records with one value of it | their gradient together |
| "institution" | all that one member holds | the member's whole contribution to a round |
"""

RECORD = "record"
INSTITUTION = "institution"
