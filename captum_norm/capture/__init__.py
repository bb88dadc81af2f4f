"""Reading attention from a running model, one call at a time, each checked exact."""

from captum_norm.capture.record import AttentionCall, AttentionRecord, Certificate, InexactCaptureError, Positions

__all__ = ["AttentionCall", "AttentionRecord", "Certificate", "InexactCaptureError", "Positions"]
