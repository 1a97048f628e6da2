"""Game days: a simulated campaign with a fault in it, played by the real jobs, day by day, by the campaign's clock."""
