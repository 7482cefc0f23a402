"""Causal tracing: which hidden states carry a fact from its subject to its object."""
