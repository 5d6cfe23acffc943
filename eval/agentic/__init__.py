"""Agentic misalignment: does an agent that is about to be replaced leak, exfiltrate or kill? docs/agentic.md."""
