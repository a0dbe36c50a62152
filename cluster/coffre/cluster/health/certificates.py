"""What the end of a certificate means for whoever shows it. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping

from coffre.cluster.health.findings import Finding, Level
from coffre.proto import coffre_pb2 as pb

__all__ = ["of_authority", "of_end", "of_tenants"]

CERTIFICATE_DAYS_MIN = 30
CERTIFICATE_DAYS_LAST = 3
AUTHORITY_DAYS_MIN = 180  # every certificate of the cluster is to be issued anew before
AUTHORITY_DAYS_LAST = 30
_DAY_MS = 86_400_000


def of_end(subject: str, whose: str, expires_ms: int, now_ms: int, remedy: str) -> list[Finding]:
    """A certificate that has ended, or ends soon. `whose`: such as "its certificate"."""
    days = (expires_ms - now_ms) / _DAY_MS
    if days < 0:
        return [Finding(Level.ERROR, subject, f"{whose} has expired, {-days:.0f} days ago: {remedy}")]
    if days < CERTIFICATE_DAYS_MIN:
        level = Level.ERROR if days < CERTIFICATE_DAYS_LAST else Level.WARNING
        return [Finding(level, subject, f"{whose} runs out in {days:.0f} days: {remedy}")]
    return []


def of_authority(expires_ms: int, now_ms: int) -> list[Finding]:
    """The end of the authority is the end of every certificate that it has issued."""
    days = (expires_ms - now_ms) / _DAY_MS
    if days >= AUTHORITY_DAYS_MIN:
        return []
    level = Level.ERROR if days < AUTHORITY_DAYS_LAST else Level.WARNING
    when = f"runs out in {days:.0f} days" if days >= 0 else f"has expired, {-days:.0f} days ago"
    text = f"its certificate {when}, and with it every certificate that it has issued: make a new authority in time"
    return [Finding(level, "authority", text)]


def of_tenants(
    statuses: Mapping[int, pb.StatusReply], files: Mapping[str, int], now_ms: int
) -> list[Finding]:
    """The certificates that tenants show to nodes, and those that were issued, of tenants that no node has met.

    `files`: by tenant, when the last one ends of those that were found where the operator's certificate is.
    """
    shown: dict[str, int] = {}
    for status in statuses.values():
        for tenant in status.tenants:
            ends = tenant.certificate_expires_unixtime_ms
            shown[tenant.name] = min(ends, shown.get(tenant.name, ends))
    findings: list[Finding] = []
    for name, ends in sorted({**files, **shown}.items()):
        remedy = "renew it where its application is (coffre pki request tenant NAME --renew)"
        if name in shown and files.get(name, 0) > ends:
            remedy = "a newer one was signed, and its application does not show it yet"
        elif name not in shown:
            remedy = "renew it; or take the file away, if this tenant is no more"
        findings += of_end(f"tenant {name}", "its certificate", ends, now_ms, remedy)
    return findings
