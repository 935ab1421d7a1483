"""The pure core: decisions and their vocabulary. No IO, no clock, no async, no logging (import rule enforced)."""
