"""Clicks to label maps: sessions, folders of prompt files, and scores under simulated users."""
