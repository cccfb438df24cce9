"""Audit: what is wrong with this data, and does fixing it help? The main job, made of the other verbs."""

from imprint.auditing.audit import AuditResult, audit
from imprint.auditing.price import Price, price

__all__ = ["AuditResult", "Price", "audit", "price"]
