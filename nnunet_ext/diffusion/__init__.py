"""Diffusion over label maps: schedules, the process, samplers, fusion and uncertainty of samples; no network here."""
