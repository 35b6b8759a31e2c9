"""The demo: a page where people drop photos, and what keeps strangers' files harmless."""
