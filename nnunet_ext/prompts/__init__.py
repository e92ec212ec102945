"""Clicks and masks: what they are, who makes them, and how they are read; no network in here."""
