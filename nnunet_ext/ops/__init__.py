"""Operators the networks share: each with a plain reference and faster ways that are tested against it."""
