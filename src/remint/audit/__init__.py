"""git, DVC's remote, MLflow, its files and the ledger held against each other (Prefect's part is in flows/audit.py).

A store that is out of reach is a finding too, and the rest is audited all the same.
"""

from remint.audit.fault import Fault, fault, unreachable
from remint.audit.together import Audit, audit, findings, repair

__all__ = ["Audit", "Fault", "audit", "fault", "findings", "repair", "unreachable"]
