"""From raw data to plans.json: presets per network and the plans that name them."""
