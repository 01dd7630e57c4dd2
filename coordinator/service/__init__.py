"""The coordinator's service: enrolment, certificates, and the mailbox that carries messages."""
