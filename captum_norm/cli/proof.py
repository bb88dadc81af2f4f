"""A proof as ``captum-norm certify --prove`` shows it: figures and a verdict, as text and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_norm.cli import table as draw

if TYPE_CHECKING:
    from captum_norm.proof import Finding, Proof

_HEADERS = ["proved by another way", "verdict", "error"]


def proof_as_text(proof: Proof) -> str:
    """A table of findings, the reasons of those that are open, and the verdict."""
    findings = proof.findings
    rows = [[f.name, f.status, "·" if f.error is None else f"{f.error:.1e}"] for f in findings]
    notes = [draw.wrap(f"{f.name}: {f.note}") for f in findings if f.note]
    count = sum(f.status == "proved" for f in proof.calls)
    verdict = f"verdict: {proof.verdict} ({count} of {len(proof.calls)} attention calls proved)"
    return "\n\n".join([draw.table(_HEADERS, rows, left=(0, 1)), *notes, verdict])


def proof_as_dict(proof: Proof) -> dict[str, Any]:
    """The same for JSON."""
    return {
        "verdict": proof.verdict,
        "calls": [_as_dict(finding) for finding in proof.calls],
        "tokens": _as_dict(proof.tokens),
        "weights": _as_dict(proof.weights),
    }


def _as_dict(finding: Finding) -> dict[str, Any]:
    return {"name": finding.name, "status": finding.status, "error": finding.error, "note": finding.note or None}
