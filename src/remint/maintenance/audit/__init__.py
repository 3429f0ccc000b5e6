"""Audit: compare git, DVC's remote, MLflow, its files and the ledger (Prefect's part is in flows/stack/audit.py).

A store that is out of reach is a finding too; the other stores are still audited.
"""

from remint.maintenance.audit.fault import Fault, fault, unreachable
from remint.maintenance.audit.run import Audit, findings, repair, run_audit

__all__ = ["Audit", "Fault", "fault", "findings", "repair", "run_audit", "unreachable"]
