"""Input as an enemy, an accident or an old disk would write it, and what palinka makes of it."""
